"""The switchboard: the one member of the channel-layer groups in this process, for all its sessions.

One channel per process, whatever the number of sessions: a message arrives once, is compared with the position
of its topic, and is handed to the topic's subscribers. The channel layer may lose messages; the log does not, so
a hole in the offsets, and a position that falls behind the log's, is repaired by reading the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from notifications.delivery import codes, control, limits, presence
from notifications.delivery.conflation import Conflation, live_topic
from notifications.delivery.housekeeping import Housekeeping
from notifications.delivery.limits import Admission, Refusal
from notifications.delivery.live_topic import LiveTopic
from notifications.delivery.openings import Openings, add_to_groups
from notifications.delivery.registry import registry
from notifications.delivery.revocations import Revocations
from notifications.delivery.session import Session
from notifications.delivery.shared_reads import ReadRounds
from notifications.delivery.subscription import Subscription
from notifications.delivery.wheel import Wheel
from notifications.delivery.writer import Writer
from notifications.events import bridge, conf, messenger
from notifications.events.event import Cursor
from notifications.events.exceptions import LogUnavailable
from notifications.events.messages import CONTROL, CONTROL_GROUP, EVENT, FORMAT, PRESENCE, event_of
from notifications.events.retention import Kind

logger = logging.getLogger(__name__)

LINGER_SECONDS = 5.0
RETRY_SECONDS = 0.5


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
        self.conflation = Conflation(self)
        self.presence = presence.PresenceChanges(self)
        self.wheel = Wheel()
        # Of sessions that have something which expires.
        self.expiries = Wheel()
        # Sessions whose clients send by requests of their own, by the secret that names them.
        self.emulated: dict[str, Session] = {}
        self._admission = Admission()
        self.writer = Writer(self.loop)
        self.revocations = Revocations(self.spawn)
        self.reads = ReadRounds(self.spawn)
        self.housekeeping = Housekeeping(self)
        self._openings: dict[Kind, Openings] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: list[asyncio.Task[None]] = []
        self._stop_receiving: Callable[[], None] | None = None

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
            layer.add_reconnect_listener(self.housekeeping.reconnected)
        self._running = [self.loop.create_task(coroutine) for coroutine in self.housekeeping.coroutines()]
        try:
            if hasattr(layer, "receive_by"):
                self._stop_receiving = await layer.receive_by(self.channel, self._dispatch)
            else:
                self._running.append(self.loop.create_task(self._receive()))
            await self.housekeeping.renew_lease()
        except BaseException:
            await self.stop()  # or its tasks would live on beside those of the next attempt
            raise

    def drain(self) -> None:
        """Take no new sessions, and close those there are at once with the advice to come back."""
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
        await self.presence.flush()
        messenger.serve_from(None)
        layer = messenger.layer()
        if hasattr(layer, "remove_reconnect_listener"):
            layer.remove_reconnect_listener(self.housekeeping.reconnected)
        if self._stop_receiving is not None:
            self._stop_receiving()
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

    def refusal(self) -> Refusal | None:
        """Why the process takes no further session now; None when it takes one, which is then counted."""
        if self.draining:
            return Refusal(503, "this process does not take sessions now; try another", limits.FULL_SECONDS)
        return self._admission.refusal(len(self.sessions), self.loop.time())

    def add(self, session: Session) -> None:
        """A session was opened."""
        self.sessions[session.id] = session
        self.housekeeping.roster_changed(session)
        self.wheel.add(session, conf.get("HUB_STALE_SECONDS"))

    def identified(self, session: Session) -> None:
        """A session's identity became known, or changed."""
        self.sessions_of_user[session.identity.user].add(session)
        self.housekeeping.roster_changed(session)

    def remove(self, session: Session) -> bool:
        """A session was closed; False when it was removed before."""
        if self.sessions.pop(session.id, None) is None:
            return False
        self.wheel.discard(session)
        self.expiries.discard(session)
        self.housekeeping.roster_changed(session)
        session.protocol.closed(session)
        known = self.sessions_of_user.get(session.identity.user)
        if known is not None:
            known.discard(session)
            if not known:
                del self.sessions_of_user[session.identity.user]
        return True

    def answered_ping(self, session: Session) -> None:
        """A session answered its ping, so that the next one is due an interval later."""
        session.awaiting_pong = False
        self.wheel.add(session, conf.get("HUB_PING_SECONDS"))

    def watch_expiry(self, session: Session) -> None:
        """Have a session ended when it, or one of its subscriptions, has expired for `HUB_EXPIRED_SECONDS`."""
        times = [session.identity.expires_at]
        times += [found.grant.expires_at for found in session.subscriptions.values() if found.grant is not None]
        expiring = [at for at in times if at is not None]
        if expiring and session.closed_with is None:
            self.expiries.add(session, max(0.0, min(expiring) + conf.get("HUB_EXPIRED_SECONDS") - time.time()))
        else:
            self.expiries.discard(session)

    # Topics.

    async def attach(self, subscription: Subscription) -> Cursor:
        """Make a subscription a held receiver of its topic; returns the topic's position in this process.

        Raises LogUnavailable when the layer or the log cannot be reached.
        """
        self.housekeeping.roster_changed(subscription.session)
        name = subscription.topic.name
        live = self.topics.get(name)
        if live is None:
            live = self.topics[name] = live_topic(self, subscription.topic)
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
        self.housekeeping.roster_changed(subscription.session)
        if live is None:
            return
        live.leave(subscription)
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
        self.housekeeping.recounted(name)

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
                self.spawn(self.rejoin())
                continue
            waiting = False
            try:
                self._dispatch(message)
            except Exception:
                logger.exception("a message of the channel layer could not be handled")

    async def rejoin(self) -> None:
        """Join every group again: a layer that keeps memberships in Redis loses them with it."""
        with contextlib.suppress(LogUnavailable):  # the next receive fails as well, and tries again
            topics = [live.group for live in self.topics.values()]
            await add_to_groups([CONTROL_GROUP, self.housekeeping.canary.group, *topics], self.channel)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("v") != FORMAT:
            return  # of another release; the log has what it announced
        kind = message["type"]
        if kind == EVENT:
            live = self.topics.get(message["topic"])
            if live is not None:
                live.arrived(event_of(message), message.get("exclude"))
        elif kind == PRESENCE:
            presence.tell(self, message)
        elif kind == CONTROL:
            control.perform(self, message)

    async def send_to_group(self, group: str, message: dict[str, Any]) -> None:
        """Send a message of the hub's own to a group of the layer."""
        await bridge.unbridged(messenger.layer())(group, message)
