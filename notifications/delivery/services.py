"""Ending the sessions of connected clients."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from notifications.audit.services import record
from notifications.delivery import control
from notifications.delivery.auth import login_of
from notifications.delivery.codes import FORCE_NO_RECONNECT
from notifications.delivery.roster import LiveSession
from notifications.delivery.selectors import live_sessions


def end_sessions(
    *,
    user: str | None = None,
    client: str | None = None,
    by: Any = None,
    sign_out: bool = False,
) -> list[LiveSession]:
    """Disconnect all clients of a user, or one client, so that they do not come back by themselves.

    A page that is loaded anew connects again, unless `sign_out` ends the Django sessions as well: all of the user, or
    the one with which the client is signed in. Returns what was connected when it was asked for. `by` is the user who
    asks for it, None for a command.

    Raises ValidationError when nobody is named, when the client is not that user's, or when there is no Django session
    to end, and LogUnavailable when the hub or its Redis cannot be reached; nothing has happened then.
    """
    if not user and not client:
        raise ValidationError("Name the user or the client whose sessions are to be ended.")
    ended = [session for session in live_sessions(user=user or None) if client in (None, session.id)]
    if client and user and not ended:
        raise ValidationError(f"{client} is no client of the user {user}.")
    sessions = _session_store() if sign_out else None
    logins = {session.login for session in ended if session.credential == "login"} if client else None
    if sign_out and logins is not None and not logins:
        raise ValidationError(f"{client} is not signed in with a Django session that could be ended.")
    with transaction.atomic():
        signed_out = 0 if sessions is None else _sign_out(sessions, user=user, logins=logins)
        if ended or signed_out:
            _record(ended, user=user, client=client, by=by, signed_out=signed_out)
        # Before the commit: the end of a Django session tells clients to come back, as somebody else perhaps.
        control.disconnect(user=None if client else user, client=client, code=FORCE_NO_RECONNECT)
    return ended


def _session_store() -> Any:
    """The site's session store. Raises ValidationError when it cannot be searched for a user's sessions."""
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if not hasattr(store, "get_model_class"):
        raise ValidationError(
            f"SESSION_ENGINE {settings.SESSION_ENGINE} cannot list sessions: use one that keeps them in the database."
        )
    return store


def _sign_out(store: Any, *, user: str | None, logins: set[str] | None) -> int:
    """End the Django sessions of some logins, or else of a user; returns how many there were.

    Django keeps whose a session is inside of it, so all that have not expired are looked through.
    """
    found = 0
    for session in store.get_model_class().objects.filter(expire_date__gt=timezone.now()).iterator():
        if logins is None:
            chosen = session.get_decoded().get(SESSION_KEY) == user
        else:
            chosen = login_of(session.session_key) in logins
        if chosen:
            store().delete(session.session_key)
            found += 1
    return found


def _record(ended: list[LiveSession], *, user: str | None, client: str | None, by: Any, signed_out: int) -> None:
    known = next(iter(ended), None)
    details: dict[str, Any] = {"user": known.user if known else user, "sessions": len(ended), "signed_out": signed_out}
    if client and known:
        details |= {"client": client, "address": known.address}
    subject = (known.name if known else user) or f"client {client}"
    record(action="session.ended", subject=subject, actor=by, details=details)
