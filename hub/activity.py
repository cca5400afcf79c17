"""What is worth watching in the hub itself, published to `activity:staff`."""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed

from notifications.audit import origin
from notifications.events import publish, publishes
from notifications.events.exceptions import HubError

logger = logging.getLogger(__name__)

TOPIC = "activity:staff"


def bind() -> None:
    """Bind users, groups and logins to events; called once, when the apps are ready."""
    fields = ["username", "is_active", "is_staff", "is_superuser"]
    publishes(get_user_model(), topic=TOPIC, fields=fields, type="user")
    publishes(Group, topic=TOPIC, fields=["name"], type="group")
    user_logged_in.connect(_logged_in, dispatch_uid="hub-activity")
    user_logged_out.connect(_logged_out, dispatch_uid="hub-activity")
    user_login_failed.connect(_login_failed, dispatch_uid="hub-activity")


def _logged_in(request: Any, user: Any, **_: Any) -> None:
    _tell("user.logged_in", {"username": user.get_username(), "address": origin.current().address})


def _logged_out(request: Any, user: Any, **_: Any) -> None:
    if user is not None:  # somebody pressed the button on a page of an ended session
        _tell("user.logged_out", {"username": user.get_username(), "address": origin.current().address})


def _login_failed(credentials: dict[str, Any], request: Any = None, **_: Any) -> None:
    username = str(credentials.get("username", ""))[:150]
    _tell("user.login_failed", {"username": username, "address": origin.current().address})


def _tell(type: str, data: dict[str, Any]) -> None:
    try:
        publish(TOPIC, type, data)
    except HubError:
        logger.exception("%s was not published", type)
