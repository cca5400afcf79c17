"""The methods of the HTTP API about what topics keep, who is subscribed to them, and what serves them."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import msgspec

from notifications.api.access import granted_topic
from notifications.api.shapes import (
    ChannelInfo,
    ChannelsRequest,
    ChannelsResult,
    HistoryRequest,
    HistoryResult,
    InfoRequest,
    InfoResult,
    Member,
    NodeInfo,
    Nothing,
    PresenceResult,
    PresenceStatsResult,
    TopicRequest,
)
from notifications.delivery import codes
from notifications.delivery import presence as members_of_topics
from notifications.delivery.codes import CommandError
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.schema import publication_of
from notifications.delivery.registry import registry
from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.logs import log_for
from notifications.events.services import aremove_history
from notifications.events.topics import ResolvedTopic


def _kept_topic(identity: Identity, name: str) -> ResolvedTopic:
    topic = granted_topic(identity, name)
    if not topic.retention.kept:
        raise CommandError(codes.NOT_AVAILABLE, f"{name} keeps no events")
    return topic


async def history(identity: Identity, request: HistoryRequest) -> HistoryResult:
    """Read the events that a topic keeps, and its position. Without a limit it is the position only."""
    topic = _kept_topic(identity, request.channel)
    most: int = conf.get("HUB_MAX_HISTORY")
    since = None if request.since is None else Cursor(request.since.offset, request.since.epoch)
    page = await log_for(topic.retention).aread(
        topic, since=since, limit=most if request.limit < 0 else min(request.limit, most), reverse=request.reverse
    )
    if since is not None and since.epoch and since.epoch != page.position.epoch:
        raise CommandError(codes.UNRECOVERABLE_POSITION)
    return HistoryResult([publication_of(event) for event in page.events], page.position.offset, page.position.epoch)


async def history_remove(identity: Identity, request: TopicRequest) -> Nothing:
    """Forget the events that a topic keeps. Its offsets go on from where they are."""
    topic = _kept_topic(identity, request.channel)
    await aremove_history(topic=topic.name)
    return Nothing()


def _check_listed(identity: Identity, name: str) -> None:
    topic = granted_topic(identity, name)
    if not topic.declaration.presence:
        raise CommandError(codes.NOT_AVAILABLE, f"{name} does not list its subscribers")


async def presence(identity: Identity, request: TopicRequest) -> PresenceResult:
    """Who is subscribed to a topic."""
    _check_listed(identity, request.channel)
    return PresenceResult(msgspec.convert(await members_of_topics.members(request.channel), dict[str, Member]))


async def presence_stats(identity: Identity, request: TopicRequest) -> PresenceStatsResult:
    """How many clients and users are subscribed to a topic."""
    _check_listed(identity, request.channel)
    return PresenceStatsResult(*await members_of_topics.stats(request.channel))


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
