"""The hub's own tasks. What they do is in the services of the apps."""

from __future__ import annotations

import logging
from typing import Any

from django.db import OperationalError

from notifications.dashboards.services import sample_system as take_sample
from notifications.events.exceptions import LogUnavailable, UnknownTopic
from notifications.events.logs import database
from notifications.events.models import TopicHead
from notifications.events.relay import relay_once
from notifications.progress import LiveTask, exports, services
from notifications.progress.names import EXPORT_HISTORY, PRUNE_EVENTS
from workers.celery import app
from workers.schedule import FAIL_LOST_TASKS, RELAY_EVENTS, SAMPLE_SYSTEM, SEND_OVERDUE_TASKS

logger = logging.getLogger(__name__)

# Of tasks that nobody sends again a minute later: up to ten minutes of trouble are lived through.
RETRIED: dict[str, Any] = {
    "autoretry_for": (LogUnavailable, OperationalError),
    "retry_backoff": 2,
    "retry_backoff_max": 120,
    "max_retries": 10,
}


@app.task(name=SAMPLE_SYSTEM, acks_late=False)
def sample_system() -> None:
    """Publish one sample of the machine and the hub to `dashboard:system`."""
    try:
        take_sample()
    except LogUnavailable as error:
        # One sample a second: the next comes soon, and a failed task would raise an alert each time.
        logger.warning("the system was not sampled: %s", error)


@app.task(name=FAIL_LOST_TASKS)
def fail_lost_tasks() -> int:
    """Show tasks as failed whose worker died; returns how many."""
    return services.fail_lost_runs()


@app.task(name=SEND_OVERDUE_TASKS)
def send_overdue_tasks() -> int:
    """Send tasks again that wait in their rows and that the broker may have lost; returns how many."""
    return services.send_overdue()


@app.task(name=RELAY_EVENTS)
def relay_events() -> int:
    """Publish durable events whose process died after its commit, also where no server runs; returns how many."""
    return relay_once()


@app.task(base=LiveTask, bind=True, name=PRUNE_EVENTS, **RETRIED)
def prune_events(self: LiveTask) -> dict[str, Any]:
    """Delete events beyond their topic's retention, old runs of tasks, and old exports."""
    heads = list(TopicHead.objects.order_by("pk"))
    deleted = 0
    for done, head in enumerate(heads, 1):
        deleted += database.prune_topic(head)
        self.progress(done, total=len(heads), note=f"{deleted} events deleted")
    database.forget_idempotency_keys()
    runs = services.delete_old_runs()
    files = exports.delete_old_files()
    return {"events": deleted, "runs": runs, "files": files}


@app.task(base=LiveTask, bind=True, name=EXPORT_HISTORY, throws=(UnknownTopic,), **RETRIED)
def export_history(self: LiveTask, topic: str) -> dict[str, Any]:
    """Write the kept events of a topic to a file of JSON lines, to download from the page of tasks."""
    file = exports.write_history(
        topic, tell=lambda done, total: self.progress(done, total=total, note=f"events of {topic}")
    )
    return {"result_url": exports.address_of(file), "topic": topic}
