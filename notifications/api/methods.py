"""The methods of the HTTP API, in the shapes of Centrifugo's: one table, from which requests are served and the
OpenAPI document is made.

Source: the public documentation of Centrifugo's server API. What it calls a channel is a topic.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from notifications.delivery import codes, presence
from notifications.delivery.codes import CommandError
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.centrifuge import presence_stats
from notifications.delivery.protocols.schema import Publication, publication_of
from notifications.delivery.registry import registry
from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.exceptions import InvalidEvent, UnknownTopic
from notifications.events.logs import log_for
from notifications.events.services import apublish_encoded
from notifications.events.topics import MAX_NAME_LENGTH, ResolvedTopic, resolve

BROADCAST_AT_ONCE = 32

Topic = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, description="Name of a topic.")]
Data = Annotated[Any, Meta(description="Any JSON.")]
Type = Annotated[
    str | None, Meta(description="Type of the event, such as order.paid; by default the one its topic declares.")
]
Key = Annotated[str | None, Meta(description="What the event is about, for topics that keep the newest per key.")]
IdempotencyKey = Annotated[
    str | None,
    Meta(description="A repetition with the same key, on the same topic and within five minutes, is not published."),
]
SkipHistory = Annotated[
    bool, Meta(description="Refused with error 108 on a topic that keeps its events: what is kept is declared there.")
]
Tags = Annotated[
    dict[str, str] | None,
    Meta(description="`type` and `key` are taken for the fields of these names; other tags are not kept."),
]


class PublishRequest(Struct, frozen=True):
    channel: Topic
    data: Data
    type: Type = None
    key: Key = None
    idempotency_key: IdempotencyKey = None
    skip_history: SkipHistory = False
    tags: Tags = None


class BroadcastRequest(Struct, frozen=True):
    channels: Annotated[list[Topic], Meta(min_length=1, description="Names of topics.")]
    data: Data
    type: Type = None
    key: Key = None
    idempotency_key: IdempotencyKey = None
    skip_history: SkipHistory = False
    tags: Tags = None


class Position(Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1, description="The last offset that is known already.")] = 0
    epoch: Annotated[str, Meta(description="Where given, another one is answered with error 112.")] = ""


class HistoryRequest(Struct, frozen=True):
    channel: Topic
    limit: Annotated[
        int, Meta(ge=-1, le=2**31 - 1, description="Most events to answer with; -1 for as many as HUB_MAX_HISTORY.")
    ] = 0
    since: Annotated[Position | None, Meta(description="Only events after it, or before it with `reverse`.")] = None
    reverse: Annotated[bool, Meta(description="The newest first.")] = False


class TopicRequest(Struct, frozen=True):
    channel: Topic


class ChannelsRequest(Struct, frozen=True):
    pattern: Annotated[str, Meta(description="Only topics that match; * and ? stand for characters.")] = ""


class InfoRequest(Struct, frozen=True):
    """Nothing."""


class PublishResult(Struct, frozen=True):
    offset: Annotated[int, Meta(description="Position in the topic; 0 where it keeps nothing.")]
    epoch: Annotated[str, Meta(description="The unbroken run of offsets.")]


class Error(Struct, frozen=True):
    code: int
    message: str


class PublishReply(Struct, frozen=True, omit_defaults=True):
    result: PublishResult | None = None
    error: Error | None = None


class BroadcastResult(Struct, frozen=True):
    responses: Annotated[list[PublishReply], Meta(description="One for each topic, in the order they were named.")]


class HistoryResult(Struct, frozen=True):
    publications: list[Publication]
    offset: Annotated[int, Meta(description="The topic's newest position.")]
    epoch: str


class Member(Struct, frozen=True, omit_defaults=True):
    client: str
    user: Annotated[str, Meta(description="The user's id, empty for a visitor.")]
    conn_info: Annotated[dict[str, Any] | None, Meta(description="What others may know of the user.")] = None


class PresenceResult(Struct, frozen=True):
    presence: Annotated[dict[str, Member], Meta(description="Who is subscribed, by the id of the client.")]


class PresenceStatsResult(Struct, frozen=True):
    num_clients: int = 0
    num_users: int = 0


class ChannelInfo(Struct, frozen=True):
    num_clients: int


class ChannelsResult(Struct, frozen=True):
    channels: dict[str, ChannelInfo]


class NodeInfo(Struct, frozen=True):
    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: Annotated[int, Meta(description="Seconds since its start.")]


class InfoResult(Struct, frozen=True):
    nodes: list[NodeInfo]


def error_of(error: CommandError) -> Error:
    """A refusal as it is answered: the protocol's code and reason, and what is wrong where that is known."""
    reason = error.code.reason
    return Error(error.code.code, f"{reason}: {error.detail}" if error.detail else reason)


def _granted(identity: Identity, name: str) -> ResolvedTopic:
    # The grant first: a limited key does not learn which other topics there are.
    if not identity.granted(name):
        raise CommandError(codes.PERMISSION_DENIED, "the key's topics do not include this one")
    try:
        return resolve(name)
    except UnknownTopic as error:
        raise CommandError(codes.UNKNOWN_TOPIC) from error


async def _publish(identity: Identity, name: str, request: PublishRequest | BroadcastRequest) -> PublishResult:
    topic = _granted(identity, name)
    if request.skip_history and topic.retention.kept:
        raise CommandError(codes.NOT_AVAILABLE, f"{name} keeps its events ({topic.retention})")
    tags = request.tags or {}
    try:
        event = await apublish_encoded(
            name,
            request.type or tags.get("type") or topic.declaration.default_type,
            request.data,
            key=request.key or tags.get("key") or None,
            idempotency_key=request.idempotency_key or None,
        )
    except InvalidEvent as error:
        raise CommandError(codes.BAD_REQUEST, str(error)) from error
    return PublishResult(event.offset or 0, event.epoch)


async def publish(identity: Identity, request: PublishRequest) -> PublishResult:
    """Publish an event to a topic.

    The body may also be a CloudEvent (`Content-Type: application/cloudevents+json`), whose `topic` or `subject`
    is the channel.
    """
    return await _publish(identity, request.channel, request)


async def broadcast(identity: Identity, request: BroadcastRequest) -> BroadcastResult:
    """Publish the same to several topics. Each has its own answer, and one that fails does not stop the others."""
    turns = asyncio.Semaphore(BROADCAST_AT_ONCE)

    async def reply(name: str) -> PublishReply:
        async with turns:
            try:
                return PublishReply(result=await _publish(identity, name, request))
            except CommandError as error:
                return PublishReply(error=error_of(error))

    return BroadcastResult(await asyncio.gather(*(reply(name) for name in request.channels)))


async def history(identity: Identity, request: HistoryRequest) -> HistoryResult:
    """Read the events that a topic keeps, and its position. Without a limit it is the position only."""
    topic = _granted(identity, request.channel)
    if not topic.retention.kept:
        raise CommandError(codes.NOT_AVAILABLE, f"{topic.name} keeps no events")
    most: int = conf.get("HUB_MAX_HISTORY")
    since = None if request.since is None else Cursor(request.since.offset, request.since.epoch)
    page = await log_for(topic.retention).aread(
        topic, since=since, limit=most if request.limit < 0 else min(request.limit, most), reverse=request.reverse
    )
    if since is not None and since.epoch and since.epoch != page.position.epoch:
        raise CommandError(codes.UNRECOVERABLE_POSITION)
    return HistoryResult([publication_of(event) for event in page.events], page.position.offset, page.position.epoch)


async def _members(identity: Identity, name: str) -> dict[str, dict[str, Any]]:
    topic = _granted(identity, name)
    if not topic.declaration.presence:
        raise CommandError(codes.NOT_AVAILABLE, f"{name} does not list its subscribers")
    return await presence.members(name)


async def presence_of(identity: Identity, request: TopicRequest) -> PresenceResult:
    """Who is subscribed to a topic."""
    return PresenceResult(msgspec.convert(await _members(identity, request.channel), dict[str, Member]))


async def presence_stats_of(identity: Identity, request: TopicRequest) -> PresenceStatsResult:
    """How many clients and users are subscribed to a topic."""
    return PresenceStatsResult(**presence_stats(await _members(identity, request.channel)))


async def channels(identity: Identity, request: ChannelsRequest) -> ChannelsResult:
    """The topics that somebody is subscribed to now, as far as the key includes them."""
    subscribers = await registry().asubscribers()
    return ChannelsResult(
        {
            name: ChannelInfo(number)
            for name, number in sorted(subscribers.items())
            if number and identity.granted(name) and fnmatchcase(name, request.pattern or "*")
        }
    )


async def info(identity: Identity, request: InfoRequest) -> InfoResult:
    """The server processes of the hub."""
    now = time.time()
    return InfoResult(
        [
            NodeInfo(
                uid=node.id,
                name=node.name,
                version=node.version,
                num_clients=node.sessions,
                num_users=node.users,
                num_subs=node.subscriptions,
                num_channels=node.live_topics,
                uptime=max(0, int(now - node.started_at)),
            )
            for node in await registry().anodes()
        ]
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the API: the shapes of its request and result, what serves it, and a request for example."""

    name: str
    request: type[Struct]
    result: type[Struct]
    serve: Callable[[Identity, Any], Awaitable[Struct]]
    example: dict[str, Any]

    @property
    def description(self) -> str:
        """What it does."""
        return inspect.getdoc(self.serve) or ""


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "publish",
            PublishRequest,
            PublishResult,
            publish,
            {"channel": "chat:lobby", "data": {"message": "Hello from the API"}},
        ),
        Method(
            "broadcast",
            BroadcastRequest,
            BroadcastResult,
            broadcast,
            {"channels": ["chat:lobby", "chat:random"], "data": {"message": "Hello, everyone"}},
        ),
        Method(
            "history",
            HistoryRequest,
            HistoryResult,
            history,
            {"channel": "chat:lobby", "limit": 10, "reverse": True},
        ),
        Method("presence", TopicRequest, PresenceResult, presence_of, {"channel": "chat:lobby"}),
        Method("presence_stats", TopicRequest, PresenceStatsResult, presence_stats_of, {"channel": "chat:lobby"}),
        Method("channels", ChannelsRequest, ChannelsResult, channels, {"pattern": "chat:*"}),
        Method("info", InfoRequest, InfoResult, info, {}),
    )
}
