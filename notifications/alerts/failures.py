"""A failed Celery task is an alert, until the same task succeeds."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.signals import task_failure, task_success

from notifications.alerts.models import Alert
from notifications.alerts.selectors import is_firing
from notifications.alerts.services import publish_alert

logger = logging.getLogger(__name__)

# A task that succeeds every second does not need to be looked up every second.
LOOK_SECONDS = 5.0
_looked_at: dict[str, float] = {}

SOURCE = "celery"
NAME = "TaskFailed"


def connect_signals() -> None:
    """Listen to the tasks of this process; called once, when the apps are ready."""
    task_failure.connect(_failed, dispatch_uid="hub-alerts")
    task_success.connect(_succeeded, dispatch_uid="hub-alerts")


def _failed(sender: Any, exception: BaseException, **_: Any) -> None:
    _looked_at.pop(sender.name, None)
    try:
        publish_alert(
            name=NAME,
            summary=f"{sender.name}: {type(exception).__name__}: {exception}"[:1_000],
            labels={"task": sender.name},
            source=SOURCE,
            fingerprint=sender.name,
        )
    except Exception:
        # Whatever keeps the alert from being raised, the task's own failure is Celery's to report.
        logger.exception("the failure of %r raised no alert", sender)


def _succeeded(sender: Any, **_: Any) -> None:
    now = time.monotonic()
    if now - _looked_at.get(sender.name, float("-inf")) < LOOK_SECONDS:
        return
    _looked_at[sender.name] = now
    try:
        if is_firing(source=SOURCE, fingerprint=sender.name):
            publish_alert(
                name=NAME,
                summary=f"{sender.name} succeeded again",
                labels={"task": sender.name},
                source=SOURCE,
                fingerprint=sender.name,
                status=Alert.Status.RESOLVED,
            )
    except Exception:
        logger.exception("the success of %r did not resolve its alert", sender)
