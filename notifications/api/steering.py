"""The methods of the HTTP API that act on connected clients.

They ask every server process, and answer as soon as that is sent: a client that is not connected is no error.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import msgspec

from notifications.api.access import granted_topic, require_every_topic
from notifications.api.publishing import json_of
from notifications.api.shapes import (
    DisconnectCode,
    DisconnectRequest,
    Nothing,
    RefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from notifications.audit.services import record
from notifications.delivery import codes, control
from notifications.delivery.codes import FORCE_NO_RECONNECT, Code, CommandError
from notifications.delivery.identity import Identity
from notifications.events.event import Cursor, encode_data
from notifications.events.exceptions import InvalidEvent
from notifications.events.threads import in_database_thread

# Of RFC 6455: codes that applications may close with begin here, and what a close frame holds besides its code.
FIRST_CLOSE_CODE = 3000
MAX_REASON_BYTES = 123


def _named(request: SubscribeRequest | UnsubscribeRequest | DisconnectRequest | RefreshRequest) -> dict[str, Any]:
    """Whose connections a request is about. An empty name is none: that of everybody, say, is not meant by mistake."""
    given = {"user": request.user, "client": request.client, "session": request.session}
    named = {name: value for name, value in given.items() if value}
    if not named:
        raise CommandError(codes.BAD_REQUEST, "name a user, a client or a session")
    return named


def _bounded(name: str, value: Any) -> Any:
    """`value` when it is no larger than the data of an event, and may travel through any channel layer."""
    try:
        encode_data(value)
        msgspec.msgpack.encode(value)  # has no integers of more than 64 bits
    except (InvalidEvent, OverflowError) as error:
        raise CommandError(codes.BAD_REQUEST, f"{name}: {error}") from error
    return value


async def subscribe(identity: Identity, request: SubscribeRequest) -> Nothing:
    """Subscribe a user's connections to a topic. The topic's own permission is not asked: the key's bearer decides."""
    granted_topic(identity, request.channel)
    position = request.recover_since
    await asyncio.to_thread(
        control.subscribe,
        topic=request.channel,
        **_named(request),
        info=_bounded("info", json_of("info", request.info, request.b64info)),
        data=_bounded("data", json_of("data", request.data, request.b64data)),
        since=None if position is None else Cursor(position.offset, position.epoch),
        expires_at=request.expire_at or None,
    )
    return Nothing()


async def unsubscribe(identity: Identity, request: UnsubscribeRequest) -> Nothing:
    """End the subscriptions of a user's connections to a topic."""
    granted_topic(identity, request.channel)
    await asyncio.to_thread(control.unsubscribe, topic=request.channel, **_named(request))
    return Nothing()


def _close_code(asked: DisconnectCode | None) -> Code:
    if asked is None:
        return FORCE_NO_RECONNECT
    if 0 < asked.code < FIRST_CLOSE_CODE:
        raise CommandError(codes.BAD_REQUEST, f"a connection is closed with a code from {FIRST_CLOSE_CODE} to 4999")
    if len(asked.reason.encode()) > MAX_REASON_BYTES:
        raise CommandError(codes.BAD_REQUEST, f"the reason has more than {MAX_REASON_BYTES} bytes")
    # Never without a reason: clients tell from the code whether to come back only where there is one.
    return Code(asked.code or FORCE_NO_RECONNECT.code, asked.reason or FORCE_NO_RECONNECT.reason)


async def disconnect(identity: Identity, request: DisconnectRequest) -> Nothing:
    """Close a user's connections. Needs a key for every topic."""
    require_every_topic(identity)
    await in_database_thread(copy_context().run, _disconnect, request, _named(request), _close_code(request.disconnect))
    return Nothing()


def _disconnect(request: DisconnectRequest, named: dict[str, str], code: Code) -> None:
    keep = tuple(request.whitelist or ())
    control.disconnect(**named, code=code, keep=keep)
    # A secret that names a session is none for a log.
    shown = {name: value for name, value in named.items() if name != "session"}
    subject = ", ".join(f"{name} {value}" for name, value in shown.items()) or "a client on a stream"
    record(action="session.ended", subject=subject, details={**shown, "code": code.code, "kept": list(keep)})


async def refresh(identity: Identity, request: RefreshRequest) -> Nothing:
    """Let a user's connections expire at another time, or now. Needs a key for every topic."""
    require_every_topic(identity)
    await asyncio.to_thread(
        control.refresh,
        **_named(request),
        expires_at=request.expire_at or None,
        expired=request.expired,
    )
    return Nothing()
