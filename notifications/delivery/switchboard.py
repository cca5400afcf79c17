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
from notifications.delivery import codes, control, metrics, presence
from notifications.delivery.frames import Encoding
from notifications.delivery.live_topic import LiveTopic
from notifications.delivery.registry import Node, registry
from notifications.delivery.session import Session
from notifications.delivery.subscription import Subscription
from notifications.delivery.wheel import Wheel
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
        self.delivered = 0
        self.max_outgoing_bytes: int = conf.get("HUB_MAX_OUTGOING_BYTES")
        self.sent_bytes = 0
        self.draining = False
        # Whether the control plane may have lost messages, because what carries them could not be reached.
        self._trouble = False
        self.wheel = Wheel()
        self._dirty: list[Session] = []
        # Joining and leaving a group take their turns, so that a quick leave and join cannot change places.
        self._membership = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: list[asyncio.Task[None]] = []

    # Life.

    async def start(self) -> None:
        """Join the control group and begin to receive.

        Raises LogUnavailable when the layer or Redis cannot be reached; nothing is left running then.
        """
        messenger.serve_from(self.loop)
        try:
            self.channel = await messenger.layer().new_channel("hub.")
            await self.join(CONTROL_GROUP)
        except Exception as error:  # every layer has its own
            raise LogUnavailable(f"the channel layer cannot be reached: {error}") from error
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
        for session in list(self.sessions.values()):
            session.disconnect(codes.SHUTDOWN)

    async def stop(self) -> None:
        """Close every session and leave the layer."""
        self.drain()
        messenger.serve_from(None)
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

    def flush_later(self, session: Session) -> None:
        """Have the session write what it sends in this turn of the loop, once, when the turn ends."""
        if not self._dirty:
            self.loop.call_soon(self._flush)
        self._dirty.append(session)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for session in dirty:
            session.flush()
        # Counted here once, not per write: a counter of Prometheus takes a lock each time.
        metrics.sent_bytes.inc(self.sent_bytes)
        self.sent_bytes = 0

    # Topics.

    async def attach(self, subscription: Subscription) -> Cursor:
        """Make a subscription a held receiver of its topic; returns the topic's position in this process.

        Raises LogUnavailable when the layer or the log cannot be reached.
        """
        name = subscription.topic.name
        live = self.topics.get(name)
        if live is None:
            live = self.topics[name] = LiveTopic(self, subscription.topic)
        live.waiting.append(subscription)
        subscription.live = live
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
            self.spawn(self._leave(live))

    async def join(self, group: str) -> None:
        """Make this process a member of a group."""
        async with self._membership:
            await messenger.layer().group_add(group, self.channel)

    async def _leave(self, live: LiveTopic) -> None:
        async with self._membership:
            if live.topic.name not in self.topics:
                await messenger.layer().group_discard(live.group, self.channel)

    # What arrives from the layer.

    async def _receive(self) -> None:
        layer = messenger.layer()
        waiting = False
        while True:
            try:
                message = await layer.receive(self.channel)
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
            try:
                self._dispatch(message)
            except Exception:
                logger.exception("a message of the channel layer could not be handled")

    async def _rejoin(self) -> None:
        """Join every group again: a layer that keeps memberships in Redis loses them with it."""
        with contextlib.suppress(LogUnavailable):  # the next receive fails as well, and tries again
            for group in [CONTROL_GROUP, *(live.group for live in self.topics.values())]:
                await self.join(group)

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
                self._trouble = True
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
        payload = session.protocol.encode_ping()
        if payload is None:
            session.transport.ping()
            return float(conf.get("HUB_PING_SECONDS"))
        session.send(payload)
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
        await registry().renew(
            Node(
                id=self.node,
                channel=self.channel,
                name=f"{socket.gethostname()}:{os.getpid()}",
                version=notifications.__version__,
                started_at=self.started_at,
                sessions=len(self.sessions),
                users=len(self.sessions_of_user),
                subscriptions=sum(len(live.ready) for live in self.topics.values()),
                topics={name: len(live.ready) for name, live in self.topics.items()},
                delivered=self.delivered,
            )
        )

    async def _check_positions(self) -> None:
        """Compare the position of every live topic with its log's, and repair those that fell behind."""
        while True:
            await asyncio.sleep(conf.get("HUB_POSITION_CHECK_SECONDS"))
            for kind in (Kind.WINDOW, Kind.DURABLE):  # each for itself: one log may be there when the other is not
                live = [live for live in self.topics.values() if live.topic.retention.kind is kind]
                try:
                    await self._compare(live)
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
