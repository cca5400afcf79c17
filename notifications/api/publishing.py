"""The methods of the HTTP API that publish."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec

from notifications.api.access import granted_topic
from notifications.api.shapes import (
    BroadcastRequest,
    BroadcastResult,
    Error,
    Publishing,
    PublishReply,
    PublishRequest,
    PublishResult,
)
from notifications.delivery import codes, limits
from notifications.delivery.codes import CommandError
from notifications.delivery.identity import Identity
from notifications.events import conf
from notifications.events.exceptions import InvalidEvent
from notifications.events.services import apublish_encoded

AT_ONCE = 32


def error_of(error: CommandError) -> Error:
    """A refusal as it is answered: the protocol's code and reason, and what is wrong where that is known."""
    reason = error.code.reason
    return Error(error.code.code, f"{reason}: {error.detail}" if error.detail else reason)


def json_of(name: str, value: Any, encoded: str | None) -> Any:
    """The value of a field that may be given as base64 instead. Raises CommandError 107 when that is not JSON."""
    if not encoded:
        return value
    try:
        text = base64.b64decode(encoded, validate=True)
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(codes.BAD_REQUEST, f"b64{name} is not the base64 of JSON: {error}") from error
    levels: int = conf.get("HUB_MAX_JSON_DEPTH")
    if limits.too_deep(text, limit=levels):
        raise CommandError(codes.BAD_REQUEST, f"b64{name} nests deeper than {levels} levels")
    return value


def refuse_too_many(what: str, number: int) -> None:
    """Raise CommandError 106 for more commands or topics than one request may have."""
    most: int = conf.get("HUB_MAX_BATCH")
    if number > most:
        raise CommandError(codes.LIMIT_EXCEEDED, f"{number} {what}; HUB_MAX_BATCH allows {most}")


def _data_of(request: Publishing) -> Any:
    data = json_of("data", request.data, request.b64data)
    if data is msgspec.UNSET:
        raise CommandError(codes.BAD_REQUEST, "give data, or b64data")
    return data


async def _publish(identity: Identity, name: str, request: Publishing, data: Any) -> PublishResult:
    topic = granted_topic(identity, name)
    tags = dict(request.tags or {})
    tagged_type = tags.pop("type", None)
    try:
        event = await apublish_encoded(
            name,
            request.type or tagged_type or topic.declaration.default_type,
            data,
            key=request.key or tags.get("key") or None,
            idempotency_key=request.idempotency_key or None,
            tags=tags or None,
            version=request.version,
            version_epoch=request.version_epoch or "",
            keep=not request.skip_history,
        )
    except InvalidEvent as error:
        raise CommandError(codes.BAD_REQUEST, str(error)) from error
    return PublishResult(event.offset or 0, event.epoch)


async def publish(identity: Identity, request: PublishRequest) -> PublishResult:
    """Publish an event to a topic.

    The body may also be a CloudEvent (`Content-Type: application/cloudevents+json`), whose `topic` or `subject`
    is the channel.
    """
    return await _publish(identity, request.channel, request, _data_of(request))


async def broadcast(identity: Identity, request: BroadcastRequest) -> BroadcastResult:
    """Publish the same to several topics. Each has its own answer, and one that fails does not stop the others."""
    refuse_too_many("topics", len(request.channels))
    data = _data_of(request)
    turns = asyncio.Semaphore(AT_ONCE)

    async def reply(name: str) -> PublishReply:
        async with turns:
            try:
                return PublishReply(result=await _publish(identity, name, request, data))
            except CommandError as error:
                return PublishReply(error=error_of(error))

    return BroadcastResult(await asyncio.gather(*(reply(name) for name in request.channels)))
