"""The one write of the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model

from notifications.audit import origin
from notifications.events.text import storable


def record(*, action: str, subject: str, actor: Any = None, details: Mapping[str, Any] | None = None) -> None:
    """Note that somebody did something, in the transaction of the caller: it is noted if it happened.

    `action` is a short text such as `broadcast.published`, `subject` tells what it was done to, and `details` is
    JSON. Without an `actor` it is the user of the present request; the address is that of the request. Nothing is
    noted on a site that has not installed the app.
    """
    if not apps.is_installed("notifications.audit"):
        return
    from notifications.audit.models import MAX_ACTION_LENGTH, MAX_NAME_LENGTH, AuditEntry

    if len(action) > MAX_ACTION_LENGTH:
        raise ValueError(f"an action has at most {MAX_ACTION_LENGTH} characters, and {action!r} has more")
    source = origin.current()
    user = actor if actor is not None else source.user()
    known = user is not None and user.is_authenticated
    name = str(user.get_username()) if known else source.name
    AuditEntry.objects.create(
        # The bearer of a token need not be a user of this site.
        actor=user if known and isinstance(user, get_user_model()) else None,
        actor_name=storable(name)[:MAX_NAME_LENGTH],
        address=source.address,
        action=action,
        subject=storable(subject),
        details=dict(details or {}),
    )
