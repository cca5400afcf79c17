"""Reads of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from notifications.audit.models import AuditEntry


def newest(
    *,
    action: str | None = None,
    actor: Any = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = 100,
) -> list[AuditEntry]:
    """What was done, the newest first: all of it, or one action, by one user, from `since` on and before `until`."""
    entries = AuditEntry.objects.select_related("actor")
    if action is not None:
        entries = entries.filter(action=action)
    if actor is not None:
        entries = entries.filter(actor=actor)
    if since is not None:
        entries = entries.filter(time__gte=since)
    if until is not None:
        entries = entries.filter(time__lt=until)
    return list(entries[:limit])
