"""The switchboard: the one member of the channel-layer groups in this process, for all its sessions.

One channel per process, whatever the number of sessions: a message arrives once, is compared with the position
of its topic, and is handed to the topic's subscribers. The channel layer may lose messages; the log does not, so
a hole in the offsets, and a position that falls behind the log's, is repaired by reading the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import notifications
from notifications.delivery import codes, control, presence
from notifications.delivery.frames import Encoding
from notifications.delivery.live_topic import LiveTopic
from notifications.delivery.openings import Openings, add_to_groups
from notifications.delivery.registry import Node, registry
from notifications.delivery.revocations import Revocations
from notifications.delivery.session import Session
from notifications.delivery.subscription import Subscription
from notifications.delivery.wheel import Wheel
from notifications.delivery.writer import Writer
from notifications.events import bridge, conf, messenger
from notifications.events.event import Cursor
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import log_for
from notifications.events.messages import CONTROL, CONTROL_GROUP, EVENT, FORMAT, PRESENCE, event_of
from notifications.events.retention import Kind

logger = logging.getLogger(__name__)

LINGER_SECONDS = 5.0
RETRY_SECONDS = 0.5
HOUSEKEEPING_SECONDS = 1.0
# So many that a round trip costs little, and so few that the loop is not held up.
COMPARED_AT_ONCE = 500


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Switchboard]] = WeakKeyDictionary()


async def current_switchboard() -> Switchboard:
    """The switchboard of the running event loop, started at the first call.

    Raises LogUnavailable when the channel layer or Redis cannot be reached; the next call tries again.
    """
    loop = asyncio.get_running_loop()
    starting = _of_loop.get(loop)
    if starting is None or (starting.done() and (starting.cancelled() or starting.exception() is not None)):
        starting = _of_loop[loop] = loop.create_task(_started())
    return await asyncio.shield(starting)


async def _started() -> Switchboard:
    switchboard = Switchboard()
    await switchboard.start()
    return switchboard


async def stop_current() -> None:
    """Stop the switchboard of the running event loop, if it was started."""
    starting = _of_loop.pop(asyncio.get_running_loop(), None)
    if starting is not None:
        await (await starting).stop()


class Switchboard:
    """Connects the channel layer with the sessions of one event loop. Make it and call its methods on that loop.

    `serving` is False in a process that only listens, such as a command: it has no lease in the registry, and its
    sessions are not listed as present.
    """

    def __init__(self, *, serving: bool = True) -> None:
        self.serving = serving
        self.loop = asyncio.get_running_loop()
        self.node = uuid.uuid4().hex
        self.started_at = time.time()
        self.channel = ""
        self.topics: dict[str, LiveTopic] = {}
        self.sessions: dict[str, Session] = {}
        self.sessions_of_user: defaultdict[str, set[Session]] = defaultdict(set)
        self.subscriptions = 0
        self.delivered = 0
        self.max_outgoing_bytes: int = conf.get("HUB_MAX_OUTGOING_BYTES")
        self.draining = False
        # Whether the control plane may have lost messages, because what carries them could not be reached.
        self._trouble = False
        self.wheel = Wheel()
        self.writer = Writer(self.loop)
        self.revocations = Revocations(self.spawn)
        self._openings: dict[Kind, Openings] = {}
        # Topics whose number of subscriptions has changed since the registry was told.
        self._recounted: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: list[asyncio.Task[None]] = []

    # Life.

    async def start(self) -> None:
        """Join the control group and begin to receive.

        Raises LogUnavailable when the layer or Redis cannot be reached; nothing is left running then.
        """
        messenger.serve_from(self.loop)
        try:
            layer = messenger.layer()
            self.channel = await layer.new_channel("hub.")
            await add_to_groups([CONTROL_GROUP], self.channel)
        except Exception as error:  # every layer has its own
            raise LogUnavailable(f"the channel layer cannot be reached: {error}") from error
        # Each kind has a log of its own, and need not wait while another's does not answer.
        self._openings = {kind: Openings(self.channel, is_wanted=self.topics.__contains__) for kind in Kind}
        if hasattr(layer, "add_reconnect_listener"):
            layer.add_reconnect_listener(self._reconnected)
        self._running = [
            self.loop.create_task(self._receive()),
            self.loop.create_task(self._housekeep()),
            self.loop.create_task(self._check_positions()),
            self.loop.create_task(self._judge_regularly()),
        ]
        try:
            await self._renew_lease()
        except BaseException:
            await self.stop()  # or its tasks would live on beside those of the next attempt
            raise

    def drain(self) -> None:
        """Take no new sessions, and close those there are with the advice to come back."""
        self.draining = True
        self.writer.hand_out()
        for session in list(self.sessions.values()):
            try:
                session.disconnect(codes.SHUTDOWN)
            except Exception:
                logger.exception("a session could not be closed")

    async def stop(self) -> None:
        """Close every session and leave the layer."""
        self.drain()
        messenger.serve_from(None)
        layer = messenger.layer()
        if hasattr(layer, "remove_reconnect_listener"):
            layer.remove_reconnect_listener(self._reconnected)
        for openings in self._openings.values():
            openings.stop()
        running: set[asyncio.Task[Any]] = {*self._running, *self._tasks}
        while running:
            for task in running:
                task.cancel()
            # Again, as a call to Redis that is timing out at that moment may swallow the cancellation.
            _, running = await asyncio.wait(running, timeout=1)
        if not self.serving:
            return
        try:
            await registry().remove(self.node)
        except LogUnavailable:
            logger.warning("the lease of this process could not be given back; it expires by itself")

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task that is kept until it ends, and whose failure is logged."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, LogUnavailable):
                logger.warning("%s", error)
            else:
                logger.error("a task of the switchboard failed", exc_info=error)

    # Sessions.

    def add(self, session: Session) -> None:
        """A session was opened."""
        self.sessions[session.id] = session
        self.wheel.add(session, conf.get("HUB_STALE_SECONDS"))

    def identified(self, session: Session) -> None:
        """A session's identity became known, or changed."""
        self.sessions_of_user[session.identity.user].add(session)

    def remove(self, session: Session) -> bool:
        """A session was closed; False when it was removed before."""
        if self.sessions.pop(session.id, None) is None:
            return False
        known = self.sessions_of_user.get(session.identity.user)
        if known is not None:
            known.discard(session)
            if not known:
                del self.sessions_of_user[session.identity.user]
        return True

    # Topics.

    async def attach(self, subscription: Subscription) -> Cursor:
        """Make a subscription a held receiver of its topic; returns the topic's position in this process.

        Raises LogUnavailable when the layer or the log cannot be reached.
        """
        name = subscription.topic.name
        live = self.topics.get(name)
        if live is None:
            live = self.topics[name] = LiveTopic(self, subscription.topic)
            self._openings[live.topic.retention.kind].open(live)
        live.waiting.append(subscription)
        subscription.live = live
        if live.opened is not None:
            try:
                await asyncio.shield(live.opened)
            except Exception as error:
                self.forget(live)
                if isinstance(error, LogUnavailable):
                    raise
                raise LogUnavailable(f"the channel layer did not take a subscription: {error!r}") from error
        return live.position or Cursor()

    def detach(self, subscription: Subscription) -> None:
        """Take a subscription off its topic; the group is left when nobody came back for a while."""
        live, subscription.live = subscription.live, None
        if live is None:
            return
        live.ready.pop(subscription.session, None)
        live.waiting = [waiting for waiting in live.waiting if waiting is not subscription]
        if live.empty:
            self.loop.call_later(LINGER_SECONDS, self._close_if_empty, live)

    def _close_if_empty(self, live: LiveTopic) -> None:
        if live.empty:
            self.forget(live)

    def forget(self, live: LiveTopic) -> None:
        """Serve a topic no longer, and leave its group."""
        if self.topics.get(live.topic.name) is live:
            del self.topics[live.topic.name]
            self._openings[live.topic.retention.kind].close(live)

    def counted(self, name: str, change: int) -> None:
        """A subscription to a topic became established, or ended."""
        self.subscriptions += change
        self._recounted.add(name)

    # What arrives from the layer.

    async def _receive(self) -> None:
        layer = messenger.layer()
        waiting = False
        while True:
            try:
                # All that are there, where the layer can: what arrives together is written together.
                if hasattr(layer, "receive_many"):
                    messages = await layer.receive_many(self.channel)
                else:
                    messages = [await layer.receive(self.channel)]
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, LogUnavailable):
                    logger.exception("receiving from the channel layer failed; trying again")
                elif not waiting:
                    waiting = True
                    logger.warning("receiving from the channel layer failed: %s; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)
                self.spawn(self._rejoin())
                continue
            waiting = False
            for message in messages:
                try:
                    self._dispatch(message)
                except Exception:
                    logger.exception("a message of the channel layer could not be handled")

    async def _rejoin(self) -> None:
        """Join every group again: a layer that keeps memberships in Redis loses them with it."""
        with contextlib.suppress(LogUnavailable):  # the next receive fails as well, and tries again
            await add_to_groups([CONTROL_GROUP, *(live.group for live in self.topics.values())], self.channel)

    def _reconnected(self) -> None:
        """The layer may have lost messages: those of topics are in the log, those of the control plane are not."""
        self._control_may_have_failed()
        self.spawn(self._compare_all())

    def _control_may_have_failed(self) -> None:
        self._trouble = True
        self.revocations.distrust()

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("v") != FORMAT:
            return  # of another release; the log has what it announced
        kind = message["type"]
        if kind == EVENT:
            live = self.topics.get(message["topic"])
            if live is not None:
                live.arrived(event_of(message), message.get("exclude"))
        elif kind == PRESENCE:
            self._tell_presence(message)
        elif kind == CONTROL:
            control.perform(self, message)

    def _tell_presence(self, message: dict[str, Any]) -> None:
        live = self.topics.get(message["topic"])
        if live is None:
            return
        live.hand_out()  # who left has published before
        frames: dict[Encoding, bytes | None] = {}
        for session, subscription in live.ready.items():
            if not subscription.join_leave or session.id == message["client"]:
                continue
            encoding = session.encoding
            if encoding not in frames:
                frames[encoding] = encoding.presence_frame(message["topic"], message["action"], message["info"])
            if (frame := frames[encoding]) is not None:
                session.send_frame(frame)

    async def send_to_group(self, group: str, message: dict[str, Any]) -> None:
        """Send a message of the hub's own to a group of the layer."""
        await bridge.unbridged(messenger.layer())(group, message)

    # Housekeeping.

    async def _housekeep(self) -> None:
        renewed = 0.0
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                for session in self.wheel.due():
                    self._tick(session)
                await self._renew_lease()
                if self._trouble:
                    self._trouble = False
                    self.spawn(control.judge_everybody(self))
                if self.loop.time() - renewed > conf.get("HUB_PRESENCE_TTL_SECONDS") / 3:
                    renewed = self.loop.time()
                    await presence.renew(self)
            except LogUnavailable as error:
                self._control_may_have_failed()
                logger.warning("housekeeping: %s", error)
            except Exception:
                logger.exception("housekeeping failed")

    def _tick(self, session: Session) -> None:
        if session.closed_with is not None or session.id not in self.sessions:
            return
        expires_at = session.identity.expires_at
        if not session.connected:
            session.disconnect(codes.STALE)
        elif session.awaiting_pong:
            session.disconnect(codes.NO_PONG)
        elif expires_at is not None and expires_at < time.time():
            session.disconnect(codes.EXPIRED)
        else:
            self.wheel.add(session, self._ping(session))

    def _ping(self, session: Session) -> float:
        """Ping a session; returns in how many seconds it is looked at again."""
        ping = session.encoding.ping
        if ping is None:
            session.transport.ping()
            return float(conf.get("HUB_PING_SECONDS"))
        session.send_frame(ping)
        if not session.protocol.answers_pings:
            return float(conf.get("HUB_PING_SECONDS"))
        session.awaiting_pong = True
        return float(conf.get("HUB_PONG_SECONDS"))

    def answered_ping(self, session: Session) -> None:
        """A session answered its ping, so that the next one is due an interval later."""
        session.awaiting_pong = False
        self.wheel.add(session, conf.get("HUB_PING_SECONDS"))

    async def _renew_lease(self) -> None:
        if not self.serving:
            return
        recounted, self._recounted = self._recounted, set()
        node = Node(
            id=self.node,
            channel=self.channel,
            name=f"{socket.gethostname()}:{os.getpid()}",
            version=notifications.__version__,
            started_at=self.started_at,
            sessions=len(self.sessions),
            users=len(self.sessions_of_user),
            subscriptions=self.subscriptions,
            live_topics=len(self.topics),
            delivered=self.delivered,
        )
        try:
            if not await registry().renew(node, {name: self._subscribers(name) for name in recounted}):
                self._recounted.update(self.topics)
        except BaseException:
            self._recounted |= recounted  # to be told at the next attempt
            raise

    def _subscribers(self, name: str) -> int:
        live = self.topics.get(name)
        return 0 if live is None else sum(found.established for found in live.subscriptions())

    async def _check_positions(self) -> None:
        """Compare the position of every live topic with its log's now and then, and repair those that fell behind."""
        while True:
            await asyncio.sleep(conf.get("HUB_POSITION_CHECK_SECONDS"))
            await self._compare_all()

    async def _compare_all(self) -> None:
        for kind in (Kind.WINDOW, Kind.DURABLE):  # each for itself: one log may be there when the other is not
            live = [live for live in self.topics.values() if live.topic.retention.kind is kind]
            try:
                for start in range(0, len(live), COMPARED_AT_ONCE):
                    await self._compare(live[start : start + COMPARED_AT_ONCE])
            except LogUnavailable as error:
                logger.warning("positions cannot be compared with the log: %s", error)
            except Exception:
                logger.exception("comparing positions failed")

    async def _judge_regularly(self) -> None:
        """Ask every session's permissions again now and then: not every change of rights is told to the hub."""
        while True:
            seconds = conf.get("HUB_RECHECK_SECONDS")
            await asyncio.sleep(seconds)
            try:
                if self.revocations.in_use:
                    await self.revocations.refresh()
                await control.judge_everybody(self, seconds=seconds / 2)
            except Exception:
                logger.exception("judging the sessions failed")

    async def _compare(self, live_topics: Iterable[LiveTopic]) -> None:
        known = {live.topic.name: (live, live.position) for live in live_topics if live.position is not None}
        if not known:
            return
        log = log_for(next(iter(known.values()))[0].topic.retention)
        positions = await log.apositions([live.topic for live, _ in known.values()])
        for name, (live, before) in known.items():
            # Only what has not moved meanwhile is behind; otherwise the announcement is on its way.
            if positions[name] != before and live.position == before:
                live.repair()
