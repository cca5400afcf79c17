"""Topics whose events replace each other: who does not keep up gets the newest one per key instead of all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from notifications.delivery import codes, metrics
from notifications.delivery.fanout import FanOut
from notifications.delivery.frames import Encoding
from notifications.delivery.live_topic import LiveTopic
from notifications.delivery.subscription import Subscription
from notifications.events.event import EncodedEvent
from notifications.events.topics import ResolvedTopic, namespace_of

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

# From so many unsent bytes on, event loops and uvicorn say that a client does not keep up.
BEHIND_BYTES = 65_536
# What an event that is kept takes besides its data.
ENTRY_BYTES = 200
# How often sessions that are behind are looked at, while there are any.
LOOK_SECONDS = 0.05

Newest = dict[str | None, EncodedEvent]
Frames = dict[tuple[Encoding, int], bytes]


def live_topic(switchboard: Switchboard, topic: ResolvedTopic) -> LiveTopic:
    """What serves a topic, as its declaration says."""
    return ConflatingTopic(switchboard, topic) if topic.declaration.conflates else LiveTopic(switchboard, topic)


class ConflatingTopic(LiveTopic):
    """A topic of which sessions that are behind get the newest event per key, as soon as they have caught up.

    They take no part in the fan-out meanwhile, so that it asks nobody but whoever is ready.
    """

    __slots__ = ("behind",)

    def __init__(self, switchboard: Switchboard, topic: ResolvedTopic) -> None:
        super().__init__(switchboard, topic)
        self.behind: dict[Session, Subscription] = {}

    @property
    def empty(self) -> bool:
        return super().empty and not self.behind

    def subscriptions(self) -> list[Subscription]:
        return [*super().subscriptions(), *self.behind.values()]

    def live_subscriptions(self) -> list[tuple[Session, Subscription]]:
        return [*super().live_subscriptions(), *self.behind.items()]

    def leave(self, subscription: Subscription) -> None:
        super().leave(subscription)
        if self.behind.pop(subscription.session, None) is not None:
            self.switchboard.conflation.forget(subscription.session, self)

    def _fan_out(self, event: EncodedEvent, exclude: str | None) -> None:
        if self.behind:
            self._keep(event, list(self.behind.items()), exclude)
        super()._fan_out(event, exclude)

    def _on_their_way(self, events: Sequence[EncodedEvent], exclude: str | None = None) -> FanOut:
        conflation = self.switchboard.conflation
        # Whoever has a stream to be written to keeps up.
        asked = [session for part in self.ready.parts() if part.streams is None for session in part.sessions]
        fell_behind = []
        for session in [*asked, *self.variants.subscriptions]:
            if session.transport.congested and conflation.is_behind(session):
                subscription = self.ready.remove(session) or self.variants.subscriptions.pop(session)
                self.behind[session] = subscription
                conflation.fell_behind(session, self)
                fell_behind.append((session, subscription))
        if fell_behind:
            for event in events:
                self._keep(event, fell_behind, exclude)
        return super()._on_their_way(events, exclude)

    def _keep(self, event: EncodedEvent, behind: Sequence[tuple[Session, Subscription]], exclude: str | None) -> None:
        for session, subscription in behind:
            wanted = subscription.variant is None or subscription.variant.accepts(event)
            if wanted and session.id != exclude:
                self.switchboard.conflation.keep(session, self, event)

    def caught_up(self, session: Session, newest: Newest, frames: Frames) -> int:
        """Send what was kept for a session, in its order, and let it take part again; returns the bytes sent."""
        self.hand_out()  # what it has had already is for those who are ready now
        subscription = self.behind.pop(session, None)
        if subscription is None:
            return 0  # it ended when something before it failed
        variant, encoding = subscription.variant, session.encoding
        self._goes_live(subscription)
        sent = []
        for event in newest.values():
            if variant is not None:
                frame = variant.frame(event, encoding)
            elif (frame := frames.get((encoding, id(event)))) is None:
                frame = frames[encoding, id(event)] = encoding.frame(event)
            if frame is not None:
                sent.append(frame)
                session.send_frame(frame)
        if variant is not None:
            variant.whole = True
        metrics.delivered_in(namespace_of(self.topic.name)).inc(len(sent))
        self.switchboard.delivered += len(sent)
        return sum(map(len, sent))


class _Behind:
    """What a session that is behind has not got yet."""

    __slots__ = ("kept", "size")

    def __init__(self) -> None:
        self.kept: dict[ConflatingTopic, Newest] = {}
        self.size = 0

    def keep(self, live: ConflatingTopic, event: EncodedEvent) -> None:
        newest = self.kept[live]
        replaced = newest.pop(event.key, None)
        newest[event.key] = event  # at the end, where its offset belongs
        self.size += _size(event)
        if replaced is not None:
            self.size -= _size(replaced)
            metrics.conflated.labels(namespace_of(event.topic)).inc()

    def forget(self, live: ConflatingTopic) -> None:
        self.size -= sum(map(_size, self.kept.pop(live).values()))


def _size(event: EncodedEvent) -> int:
    return len(memoryview(event.data)) + ENTRY_BYTES


class Conflation:
    """The sessions of a process that are behind on topics that conflate; they cost something as long as they are."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._behind: dict[Session, _Behind] = {}
        self._looking = False
        # Well before the session would be disconnected for what other topics send it.
        self._threshold = min(BEHIND_BYTES, switchboard.max_outgoing_bytes // 2)

    def is_behind(self, session: Session) -> bool:
        """Whether a session, whose transport is congested, is to get the newest events only."""
        return session in self._behind or session.transport.pending() >= self._threshold

    def fell_behind(self, session: Session, live: ConflatingTopic) -> None:
        """A session gets the newest events of a topic only, until it has caught up."""
        behind = self._behind.setdefault(session, _Behind())
        behind.kept[live] = {}
        self._look_later()

    def keep(self, session: Session, live: ConflatingTopic, event: EncodedEvent) -> None:
        """Remember an event for a session that fell behind, instead of the one before it with this key."""
        self._behind[session].keep(live, event)

    def forget(self, session: Session, live: ConflatingTopic) -> None:
        """A session left a topic."""
        behind = self._behind.get(session)
        if behind is not None:
            behind.forget(live)
            if not behind.kept:
                del self._behind[session]

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._switchboard.loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Bring those up to date that have caught up."""
        frames: Frames = {}  # shared by those who catch up together
        for session in list(self._behind):
            behind = self._behind.get(session)
            if behind is None:
                continue  # it left meanwhile
            transport = session.transport
            if not transport.congested or transport.pending() <= self._threshold // 4:
                self._bring_up(session, frames)
            elif behind.size > self._switchboard.max_outgoing_bytes:
                session.disconnect(codes.SLOW)
        self._looking = False
        if self._behind:
            self._look_later()

    def _bring_up(self, session: Session, frames: Frames) -> None:
        size = 0
        for live, newest in self._behind.pop(session).kept.items():
            try:
                size += live.caught_up(session, newest, frames)
            except Exception:
                logger.exception("the newest events of %s could not be handed out", live.topic.name)
                live.reset()
        # Such as it gets at once, however much it is, makes it no slower than it was.
        session.allowance = max(session.allowance, size)
