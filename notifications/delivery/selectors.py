"""Reads of who is connected, for code that is not on the event loop."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import msgspec
from django.contrib.auth import get_user_model

from notifications.delivery.registry import registry
from notifications.delivery.roster import LiveSession
from notifications.events import conf, local

_CONFIRMED_WITHIN_SECONDS = 3.0
_LOOKED_EVERY_SECONDS = 0.1


def live_sessions(*, user: str | None = None) -> list[LiveSession]:
    """The clients that are connected to any server process, or those of one user ("" for visitors), the newest first.

    Raises LogUnavailable when the hub or its Redis cannot be reached.
    """
    if not conf.get("HUB_REDIS_URL") and local.is_remote():
        answer = local.owner.call("sessions", user=user)
        found = msgspec.convert(answer, list[LiveSession])
    else:
        found = registry().sessions(user)
    return sorted(found, key=lambda session: (-session.opened_at, session.id))


def still_live(sessions: Collection[LiveSession], *, seconds: float = _CONFIRMED_WITHIN_SECONDS) -> list[LiveSession]:
    """Those of some sessions that were ended which are connected all the same after so many seconds; waits for it.

    Raises LogUnavailable when the hub or its Redis cannot be reached.
    """
    deadline = time.monotonic() + seconds
    while True:
        live = {session.id for session in live_sessions()}
        left = [session for session in sessions if session.id in live]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_LOOKED_EVERY_SECONDS)


def user_id_of(name_or_id: str) -> str:
    """The id of the user who signs in with this name; what is no such name is an id itself."""
    users: Any = get_user_model()
    found = users._default_manager.filter(**{users.USERNAME_FIELD: name_or_id}).values_list("pk", flat=True).first()
    return name_or_id if found is None else str(found)
