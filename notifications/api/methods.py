"""The methods of the HTTP API: one table, from which requests are served and the OpenAPI document is made."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from django.db import DatabaseError
from msgspec import Struct

from notifications.api import metrics, publishing, reading, shapes, steering
from notifications.api.access import require_every_topic
from notifications.api.publishing import AT_ONCE, error_of, refuse_too_many
from notifications.delivery import codes, rpc
from notifications.delivery.codes import CommandError
from notifications.delivery.identity import Identity
from notifications.events.exceptions import LogUnavailable

logger = logging.getLogger(__name__)

# As many events with all their data fit into one request that may hold several.
EVENTS_AT_ONCE = 16


class Unavailable(CommandError):
    """Something that the method needs cannot be reached now."""

    def __init__(self) -> None:
        super().__init__(codes.INTERNAL)


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the API: the shapes of its request and result, what serves it, and a request for example.

    `events` of the largest size fit into its body. The result stands alone in the answer unless it is `wrapped`.
    """

    name: str
    request: type[Struct]
    result: type[Struct]
    serve: Callable[[Identity, Any], Awaitable[Struct]]
    example: dict[str, Any]
    events: int = 1
    wrapped: bool = True

    @property
    def description(self) -> str:
        """What it does."""
        return inspect.getdoc(self.serve) or ""


async def call(method: Method, identity: Identity, parameters: Any) -> Struct:
    """The result of a method. Raises CommandError, which is Unavailable where trying again may help."""
    try:
        request = msgspec.convert(parameters, method.request)
    except msgspec.ValidationError as error:
        raise CommandError(codes.BAD_REQUEST, str(error)) from error
    try:
        return await method.serve(identity, request)
    except CommandError:
        raise
    except (LogUnavailable, DatabaseError) as error:
        logger.warning("%s cannot be served: %s", method.name, error)
        raise Unavailable from error
    except Exception as error:
        logger.exception("%s failed", method.name)
        raise CommandError(codes.INTERNAL) from error


async def call_function(identity: Identity, request: shapes.RpcRequest) -> shapes.RpcResult:
    """Call a function that an app has registered for clients. Needs a key for every topic.

    The function's permission is not asked, and it sees no user: the key's bearer acts for the site.
    """
    require_every_topic(identity)
    data = b"" if request.params is msgspec.UNSET else msgspec.json.encode(request.params)
    result = await rpc.call(method=request.method, data=data, identity=identity, client="")
    return shapes.RpcResult(msgspec.Raw(result))


async def batch(identity: Identity, request: shapes.BatchRequest) -> shapes.BatchResult:
    """Call several methods with one request. Each has its own reply, and one that fails does not stop the others.

    Where the others answer with a `result`, here the `replies` stand alone.
    """
    refuse_too_many("commands", len(request.commands))
    turns = asyncio.Semaphore(AT_ONCE if request.parallel else 1)

    async def reply(command: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            return await _reply(identity, command)

    return shapes.BatchResult(await asyncio.gather(*(reply(command) for command in request.commands)))


async def _reply(identity: Identity, command: dict[str, Any]) -> dict[str, Any]:
    method = next((method for method in COMMANDS if command.get(method.name) is not None), None)
    if method is None:
        return {"error": error_of(CommandError(codes.METHOD_NOT_FOUND, "a command is {method: request}"))}
    try:
        result = await call(method, identity, command[method.name])
    except CommandError as error:
        metrics.answered(method.name, error.code.code).inc()
        return {"error": error_of(error)}
    metrics.answered(method.name, 0).inc()
    return {method.name: result}


#: The methods that a batch may call.
COMMANDS = (
    Method(
        "publish",
        shapes.PublishRequest,
        shapes.PublishResult,
        publishing.publish,
        {"channel": "chat:lobby", "data": {"message": "Hello from the API"}},
    ),
    Method(
        "broadcast",
        shapes.BroadcastRequest,
        shapes.BroadcastResult,
        publishing.broadcast,
        {"channels": ["chat:lobby", "chat:random"], "data": {"message": "Hello, everyone"}},
        events=EVENTS_AT_ONCE,
    ),
    Method(
        "subscribe",
        shapes.SubscribeRequest,
        shapes.Nothing,
        steering.subscribe,
        {"user": "7", "channel": "chat:lobby"},
    ),
    Method(
        "unsubscribe",
        shapes.UnsubscribeRequest,
        shapes.Nothing,
        steering.unsubscribe,
        {"user": "7", "channel": "chat:lobby"},
    ),
    Method(
        "disconnect",
        shapes.DisconnectRequest,
        shapes.Nothing,
        steering.disconnect,
        {"user": "7", "disconnect": {"code": 4500, "reason": "the account was closed"}},
    ),
    Method(
        "refresh",
        shapes.RefreshRequest,
        shapes.Nothing,
        steering.refresh,
        {"user": "7", "expired": True},
    ),
    Method(
        "presence",
        shapes.TopicRequest,
        shapes.PresenceResult,
        reading.presence,
        {"channel": "chat:lobby"},
    ),
    Method(
        "presence_stats",
        shapes.TopicRequest,
        shapes.PresenceStatsResult,
        reading.presence_stats,
        {"channel": "chat:lobby"},
    ),
    Method(
        "history",
        shapes.HistoryRequest,
        shapes.HistoryResult,
        reading.history,
        {"channel": "chat:lobby", "limit": 10, "reverse": True},
    ),
    Method(
        "history_remove",
        shapes.TopicRequest,
        shapes.Nothing,
        reading.history_remove,
        {"channel": "chat:lobby"},
    ),
    Method("channels", shapes.ChannelsRequest, shapes.ChannelsResult, reading.channels, {"pattern": "chat:*"}),
    Method("info", shapes.InfoRequest, shapes.InfoResult, reading.info, {}),
    Method(
        "rpc",
        shapes.RpcRequest,
        shapes.RpcResult,
        call_function,
        {"method": "shop.price", "params": {"product": 41}},
    ),
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *COMMANDS,
        Method(
            "batch",
            shapes.BatchRequest,
            shapes.BatchResult,
            batch,
            {
                "commands": [
                    {"publish": {"channel": "chat:lobby", "data": {"message": "First"}}},
                    {"presence_stats": {"channel": "chat:lobby"}},
                ]
            },
            events=EVENTS_AT_ONCE,
            wrapped=False,
        ),
    )
}
