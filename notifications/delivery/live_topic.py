"""A topic that has subscribers in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from notifications.delivery import codes, metrics
from notifications.delivery.audience import Audience
from notifications.delivery.fanout import FanOut
from notifications.delivery.shared_reads import RecentEvents
from notifications.delivery.variants import VariantReceivers
from notifications.events.event import Cursor, EncodedEvent
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import Page, log_for
from notifications.events.messages import group_of
from notifications.events.topics import ResolvedTopic, namespace_of

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.subscription import Subscription
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

# Written in one turn of the loop each, so that no session is sent more at once than it should hold.
REPAIR_EVENTS = 100
RETRY_SECONDS = 0.5


class LiveTopic:
    """A topic with subscribers in this process, and the position up to which they were served."""

    __slots__ = (
        "_explained",
        "_repairing",
        "_turn",
        "group",
        "opened",
        "pending",
        "position",
        "ready",
        "recent",
        "switchboard",
        "topic",
        "variants",
        "waiting",
    )

    def __init__(self, switchboard: Switchboard, topic: ResolvedTopic) -> None:
        self.switchboard = switchboard
        self.topic = topic
        self.group = group_of(topic.name)
        self.ready = Audience()
        # Those of the ready that do not get every event as it is.
        self.variants = VariantReceivers()
        # Subscriptions that are held, or were served from the log beyond this topic's position.
        self.waiting: list[Subscription] = []
        self.position: Cursor | None = None
        self.pending: list[tuple[EncodedEvent, str | None]] = []
        #: What was published last, for those who come back.
        self.recent = RecentEvents(self)
        self._repairing = False
        # Announcements up to this offset may come late, because the log has told of their events before.
        self._explained = 0
        # The events of this turn of the loop, which `ready` gets when the turn ends.
        self._turn: list[EncodedEvent] = []
        #: Done when the topic is served, None from then on.
        self.opened: asyncio.Future[None] | None = switchboard.loop.create_future()

    def opened_at(self, position: Cursor | None) -> None:
        """The group is joined, and the log is at `position`, if the topic has one."""
        opened, self.opened = self.opened, None
        self.position = position
        self._explained = position.offset if position is not None else 0
        self._arrive_pending()
        if opened is not None and not opened.done():
            opened.set_result(None)

    def failed(self, error: Exception) -> None:
        """The topic cannot be served: those who wait for it are told."""
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # those who wait may have gone meanwhile

    @property
    def empty(self) -> bool:
        return not self.ready and not self.waiting and not self.variants.subscriptions

    def subscriptions(self) -> list[Subscription]:
        """All subscriptions, held ones included."""
        return [*self.ready.subscriptions.values(), *self.variants.subscriptions.values(), *self.waiting]

    def live_subscriptions(self) -> list[tuple[Session, Subscription]]:
        """The subscriptions that take part in the fan-out."""
        return [*self.ready.subscriptions.items(), *self.variants.subscriptions.items()]

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription off the topic."""
        if self.ready.remove(subscription.session) is not None:
            self.switchboard.writer.left(self, subscription.session)
        self.variants.subscriptions.pop(subscription.session, None)
        if self.waiting:
            self.waiting = [waiting for waiting in self.waiting if waiting is not subscription]

    def release(self, subscription: Subscription) -> None:
        """Send what was held for a subscription, and let it take part in the fan-out."""
        held, subscription.held = subscription.held or [], None
        for event in held:
            subscription.send(event)
        self._promote()

    def _promote(self) -> None:
        """Move subscriptions that the position has caught up with to the plain fan-out."""
        if not self.waiting:
            return
        self.hand_out()  # what they have had already is for those who are ready now
        offset = self.position.offset if self.position else 0
        behind = []
        for subscription in self.waiting:
            if subscription.held is None and (subscription.floor <= offset or not self.topic.retention.kept):
                self._goes_live(subscription)
            else:
                behind.append(subscription)
        self.waiting = behind

    def _goes_live(self, subscription: Subscription) -> None:
        if subscription.variant is None:
            self.ready.add(subscription)
        else:
            self.variants.subscriptions[subscription.session] = subscription

    def arrived(self, event: EncodedEvent, exclude: str | None = None) -> None:
        """An event reached this process: hand it on if it is the next one, repair if some are missing."""
        if not event.offset or not self.topic.retention.kept:
            # The second during a deploy that makes a topic a kept one, in the processes that do not know of it yet.
            self._fan_out(event, exclude)
            return
        if self.position is None or self._repairing:
            self.pending.append((event, exclude))
        elif event.epoch != self.position.epoch or event.offset > self.position.offset + 1:
            self.pending.append((event, exclude))
            self.repair()
        elif event.offset == self.position.offset + 1:
            self._fan_out(event, exclude)
        elif event.offset > self._explained:
            # An offset that was given before: the log may have been put back to older data, and nothing is missing yet.
            self.repair(until=self.position.offset)

    def _arrive_pending(self) -> None:
        pending, self.pending = self.pending, []
        for event, exclude in pending:
            self.arrived(event, exclude)

    def _fan_out(self, event: EncodedEvent, exclude: str | None) -> None:
        if event.offset and self.topic.retention.kept:
            self.position = Cursor(event.offset, event.epoch)
        if exclude is not None:
            self._fan_out_to_others(event, exclude)
        elif self.ready or self.variants.subscriptions:
            if not self._turn:
                self.switchboard.writer.topic_later(self)
            self._turn.append(event)
        if self.waiting:
            self._fan_out_waiting(event, exclude)

    def hand_out(self) -> None:
        """Give the events of this turn to all who are ready."""
        if (turn := self.take_turn()) is not None:
            self.switchboard.writer.sessions_later(turn.give())

    def take_turn(self) -> FanOut | None:
        """The events of this turn on their way to all who are ready; None when there are none."""
        if not self._turn:
            return None
        events, self._turn = self._turn, []
        return self._on_their_way(events)

    def _fan_out_to_others(self, event: EncodedEvent, exclude: str) -> None:
        self.hand_out()
        self.switchboard.writer.sessions_later(self._on_their_way([event], exclude).give())

    def _on_their_way(self, events: Sequence[EncodedEvent], exclude: str | None = None) -> FanOut:
        """Events for those who get them as they are; those who do not are given theirs now."""
        excluded = None if exclude is None else self.switchboard.sessions.get(exclude)
        delivered = len(events) * (len(self.ready) - (excluded in self.ready))
        if self.variants.subscriptions:
            try:
                delivered += self.variants.send(events, exclude=exclude)
            except Exception:
                logger.exception("events of %s could not be handed out", self.topic.name)
                self.reset()
        metrics.delivered_in(namespace_of(self.topic.name)).inc(delivered)
        self.switchboard.delivered += delivered
        fan_out = FanOut(self, events)
        if excluded is not None:
            fan_out.leave(excluded)
        return fan_out

    def _fan_out_waiting(self, event: EncodedEvent, exclude: str | None) -> None:
        for subscription in self.waiting:
            session = subscription.session
            if exclude is not None and session.id == exclude:
                continue
            if subscription.held is not None:
                subscription.held.append(event)
            else:
                subscription.send(event)
        self._promote()

    def repair(self, *, until: int | None = None) -> None:
        """Read from the log what the layer did not bring; when nothing was announced behind it, up to an offset."""
        if not self._repairing and self.position is not None:
            self._repairing = True
            self.switchboard.spawn(self._repair(until))

    async def _repair(self, until: int | None) -> None:
        log = log_for(self.topic.retention)
        try:
            while self.position is not None and not self.empty:
                try:
                    page = await log.aread(self.topic, since=self.position, limit=REPAIR_EVENTS)
                    if self._is_behind(page.position):
                        page = Page([], await log.abegin_epoch(self.topic, lost=self.position))
                except LogUnavailable as error:
                    logger.warning("%s cannot be repaired yet: %s", self.topic.name, error)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if self._serve(page, until):
                    return
        finally:
            self._repairing = False
            if self.empty:
                # Nobody is left whom a hole could harm; the next subscriber opens the topic anew.
                self.switchboard.forget(self)
            else:
                self._arrive_pending()

    def _is_behind(self, position: Cursor) -> bool:
        """Whether the log was put back to older data, and would give offsets that subscribers have seen already."""
        known = self.position
        return known is not None and position.epoch == known.epoch and position.offset < known.offset

    def _serve(self, page: Page, until: int | None) -> bool:
        """Hand on what the log had; True when nothing is missing any more."""
        assert self.position is not None
        if page.position == self.position:
            self._keep_following()
            return True
        if until is not None and page.position.epoch == self.position.epoch and until <= self.position.offset:
            return True  # what was published since is announced, and looked at when this ends
        if page.position.epoch != self.position.epoch or not page.events:
            self.reset(page.position)
            return True
        if page.events[0].offset != self.position.offset + 1:
            self.reset(page.position)
            return True
        excluded = {
            event.offset or 0: exclude
            for event, exclude in self.pending
            if event.epoch == self.position.epoch and (event.offset or 0) > self.position.offset
        }
        # Not beyond what was announced: who is not to get the events after it is told by their announcements.
        last = max(excluded, default=page.position.offset if until is None else until)
        served = [event for event in page.events if (event.offset or 0) <= last]
        for event in served:
            self._fan_out(event, excluded.get(event.offset or 0))
        self._explained = self.position.offset
        metrics.gaps_repaired.labels(namespace_of(self.topic.name)).inc(len(served))
        self._keep_following()
        return bool(self.pending) or self.position.offset >= min(last, page.position.offset)

    def _keep_following(self) -> None:
        """Of what arrived meanwhile, keep what follows the position without a hole; the log has the rest."""
        assert self.position is not None
        arrived = {
            event.offset: (event, exclude) for event, exclude in self.pending if event.epoch == self.position.epoch
        }
        self.pending.clear()
        following = self.position.offset + 1
        while following in arrived:
            self.pending.append(arrived[following])
            following += 1

    def reset(self, position: Cursor | None = None) -> None:
        """Subscribers missed events: tell each, so that it subscribes anew. The log may be elsewhere, at `position`."""
        metrics.resets.labels(namespace_of(self.topic.name)).inc()
        logger.warning("subscribers of %s missed events that they did not get from its log", self.topic.name)
        if position is not None:
            self.position = position
            self._explained = position.offset
        self.pending.clear()
        for subscription in self.subscriptions():
            if subscription.established:
                subscription.session.unsubscribe_by_server(self.topic.name, codes.UNSUBSCRIBED_INSUFFICIENT_STATE)
            else:
                subscription.outdated = True  # its `subscribe()` still runs, and begins again
