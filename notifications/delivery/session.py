"""A session: one connected client, whatever its wire protocol and transport."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from notifications.delivery import codes, metrics, tokens
from notifications.delivery.actions import MAX_WAITING_COMMANDS, ClientActions
from notifications.delivery.codes import Code, CommandError, Disconnect
from notifications.delivery.frames import Encoding, Framing
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.recovery import recover
from notifications.delivery.subscription import Recovery, Subscription
from notifications.delivery.variants import Variant
from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.exceptions import LogUnavailable
from notifications.events.topics import ResolvedTopic, namespace_of

if TYPE_CHECKING:
    from notifications.delivery.identity import SubscriptionGrant
    from notifications.delivery.protocols.base import WireProtocol
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)


class UnsubscribedMeanwhile(CommandError):
    """The server ended a subscription that was still being made."""

    def __init__(self) -> None:
        super().__init__(codes.BAD_REQUEST, "unsubscribed meanwhile")


class Stream(Protocol):
    """What carries the bytes of a transport, an asyncio.WriteTransport say."""

    def write(self, data: bytes) -> object:
        """Send bytes, without waiting."""
        ...


class Transport(Protocol):
    """What carries a session's bytes: a WebSocket of the hub's server class, or any ASGI connection."""

    @property
    def framing(self) -> Framing:
        """What makes a frame of a payload."""
        ...

    @property
    def congested(self) -> bool:
        """Whether the peer takes what is written more slowly than it is, so that `pending()` has to be asked."""
        ...

    def write(self, frames: list[bytes]) -> None:
        """Send frames in order, without waiting."""
        ...

    def pending(self) -> int:
        """Bytes written that the peer has not taken yet."""
        ...

    def ping(self) -> None:
        """Send the transport's own ping, if it has one."""
        ...

    def close(self, code: Code) -> None:
        """Close with a code after what was written; abort when the peer does not take it in time."""
        ...


class Session(ClientActions):
    """One connected client. Used on its event loop only; no task, timer or queue of its own belongs to it."""

    __slots__ = (
        "_task",
        "address",
        "agent",
        "allowance",
        "arrival",
        "awaiting_pong",
        "closed_with",
        "commands",
        "connected",
        "encoding",
        "id",
        "identity",
        "opened_at",
        "outgoing",
        "protocol",
        "state",
        "stream",
        "subscriptions",
        "switchboard",
        "transport",
    )

    def __init__(
        self,
        switchboard: Switchboard,
        protocol: WireProtocol,
        transport: Transport,
        identity: Identity = ANONYMOUS,
        *,
        address: str = "",
        agent: str = "",
    ) -> None:
        self.id = secrets.token_hex(16)
        #: The client's network address as the server sees it, and what it calls itself.
        self.address = address
        self.agent = agent
        self.opened_at = time.time()
        self.switchboard = switchboard
        self.protocol = protocol
        self.transport = transport
        #: What frames can be written to without asking the transport; see `use_stream()`.
        self.stream: Stream | None = None
        self.encoding = Encoding.of(protocol, transport.framing)
        self.identity = identity
        self.subscriptions: dict[str, Subscription] = {}
        self.outgoing: list[bytes] = []
        self.commands: list[Coroutine[Any, Any, None]] = []
        self._task: asyncio.Task[None] | None = None
        self.state: Any = protocol.new_state()
        self.connected = False
        self.awaiting_pong = False
        self.allowance = 0
        #: What `limits.count_command()` keeps.
        self.arrival = 0.0
        self.beside = 0
        self.closed_with: Code | None = None

    # What the transport calls.

    def opened(self) -> None:
        """The transport is ready to be written to."""
        self.switchboard.add(self)
        metrics.connections_over(self.protocol.name).inc()
        self.protocol.opened(self)

    def feed(self, data: bytes | str) -> None:
        """A message from the client."""
        if self.closed_with is not None:
            return
        metrics.received_over(self.protocol.name).inc()
        try:
            self.protocol.received(self, data)
        except Disconnect as disconnect:
            self.disconnect(disconnect.code)
        except Exception:
            logger.exception("a message of a %s session could not be handled", self.protocol.name)
            self.disconnect(codes.SERVER_ERROR)

    def closed(self) -> None:
        """The transport is gone; what the session held is given back."""
        if not self.switchboard.remove(self):
            return
        metrics.connections_over(self.protocol.name).dec()
        if self.closed_with is None:
            self.closed_with = codes.Code(3000, "connection closed")
        for command in self.commands:
            command.close()
        self.commands.clear()
        for name in list(self.subscriptions):
            self.unsubscribe(name)

    def use_stream(self, stream: Stream | None) -> None:
        """Write to a stream from now on: the client takes what it is sent. With None, ask the transport each time."""
        if self.stream is not None and stream is None:
            self.allowance = self.transport.pending()  # for the reason that `write()` gives
        self.stream = stream
        for subscription in self.subscriptions.values():
            if subscription.live is not None:
                subscription.live.ready.changed()

    # What the session sends.

    def send(self, payload: bytes) -> None:
        """Send a payload of the protocol at the end of this turn of the loop."""
        self.send_frame(self.encoding.framing(payload))

    def send_frame(self, frame: bytes) -> None:
        """Send a ready frame at the end of this turn of the loop, joined with what else is sent in it."""
        if not self.outgoing:
            self.switchboard.writer.session_later(self)
        self.outgoing.append(frame)

    def flush(self) -> bool:
        """Write what was sent in this turn; False when the client is too slow for it, and was disconnected."""
        frames, self.outgoing = self.outgoing, []
        return not frames or self.write(frames, sum(map(len, frames)))

    def write(self, frames: list[bytes], size: int) -> bool:
        """Write frames of `size` bytes now; False when the client is too slow for them, and was disconnected."""
        if self.closed_with is not None:
            return True
        switchboard, transport = self.switchboard, self.transport
        if not transport.congested:
            # However much is sent in one turn, an answer with a long history say, a client that had taken
            # everything before is not slow. It may take its time for this much on top of the limit.
            self.allowance = size
        elif transport.pending() + size > switchboard.max_outgoing_bytes + self.allowance:
            self.disconnect(codes.SLOW)
            return False
        switchboard.writer.sent_bytes += size
        transport.write(frames)
        return True

    def disconnect(self, code: Code) -> None:
        """Close the session with a code of the protocol."""
        if self.closed_with is not None:
            return
        metrics.disconnects.labels(str(code.code)).inc()
        if code is not codes.SLOW:
            if (payload := self.protocol.closing(self, code)) is not None:
                self.outgoing.append(self.encoding.framing(payload))
            if not self.flush():
                return
        self.closed_with = code
        try:
            self.transport.close(code)
        finally:
            self.closed()

    def broken(self, error: Exception) -> None:
        """Log why the session could not be written to, and disconnect it; never raises."""
        logger.error("a %s session could not be written to", self.protocol.name, exc_info=error)
        with suppress(Exception):
            self.disconnect(codes.SERVER_ERROR)

    # What the protocol asks for. Commands that wait run one after the other, in a task made for them.

    def run(self, command: Coroutine[Any, Any, None]) -> None:
        """Run a command after those before it; disconnect a client that sends many more than are answered."""
        # A client sends in one frame what it subscribed to before it was connected.
        if len(self.commands) >= max(MAX_WAITING_COMMANDS, 2 * conf.get("HUB_MAX_SUBSCRIPTIONS")):
            command.close()
            raise Disconnect(codes.TOO_MANY_REQUESTS)
        self.commands.append(command)
        if self._task is None:
            self._task = self.switchboard.loop.create_task(self._run_commands())

    async def _run_commands(self) -> None:
        try:
            while self.commands:
                await self._run_one(self.commands.pop(0))
        finally:
            self._task = None

    def run_for_server(self, command: Coroutine[Any, Any, None]) -> None:
        """Run what the server asks of the session after the client's commands; never raises."""
        try:
            self.run(command)
        except Disconnect as disconnect:
            self.disconnect(disconnect.code)

    async def _run_one(self, command: Coroutine[Any, Any, None]) -> None:
        try:
            await command
        except Disconnect as disconnect:
            self.disconnect(disconnect.code)
        except Exception:
            logger.exception("a command of a %s session failed", self.protocol.name)
            self.disconnect(codes.SERVER_ERROR)

    async def subscribe(
        self,
        name: str,
        *,
        since: Cursor | None = None,
        by_server: bool = False,
        join_leave: bool = False,
        token: str = "",
        grant: SubscriptionGrant | None = None,
        variant: Variant | None = None,
    ) -> Recovery:
        """Subscribe to a topic, and read what was published after `since` if that is given.

        A `token` for the topic, or a `grant` of the server, stands in the place of the declaration's permission. The
        subscription is held until its `release()`, so that the answer can be written first. Raises CommandError with
        the protocol's code when that is not possible; `since` is then untouched.
        """
        topic = self.resolved(name)
        if name in self.subscriptions:
            raise CommandError(codes.ALREADY_SUBSCRIBED)
        if len(self.subscriptions) >= conf.get("HUB_MAX_SUBSCRIPTIONS"):
            raise CommandError(codes.LIMIT_EXCEEDED)
        subscription = Subscription(self, topic, by_server=by_server, grant=grant, variant=variant)
        self.subscriptions[name] = subscription
        try:
            if not by_server:
                subscription.grant = await self._admitted(topic, token)
            forced = subscription.follows("force_push_join_leave", declared=topic.declaration.force_join_leave)
            subscription.join_leave = topic.declaration.join_leave and (join_leave or forced)
            self._still_wanted(subscription)
            await self.switchboard.attach(subscription)
            recovery = await recover(subscription, since)
            self._still_wanted(subscription)
        except BaseException as error:
            if self.subscriptions.get(name) is subscription:
                del self.subscriptions[name]
            self.switchboard.detach(subscription)
            if isinstance(error, LogUnavailable):
                raise CommandError(codes.INTERNAL, str(error)) from error
            raise
        subscription.floor = recovery.position.offset
        subscription.established = True
        self.switchboard.counted(name, 1)
        self.switchboard.watch_expiry(self)
        metrics.subscriptions_in(namespace_of(name)).inc()
        return recovery

    async def _admitted(self, topic: ResolvedTopic, token: str) -> SubscriptionGrant | None:
        """What a subscription token grants, or None where the declaration allows it; raises CommandError otherwise."""
        if token:
            return await tokens.subscription_grant(token, topic=topic.name, identity=self.identity)
        if not await self._allows(topic, "subscribe"):
            raise CommandError(codes.PERMISSION_DENIED)
        return None

    async def prolong(self, name: str, token: str) -> SubscriptionGrant:
        """Take a new token for a subscription that was made with one. Raises CommandError."""
        subscription = self.subscriptions.get(name)
        if subscription is None or not subscription.established:
            raise CommandError(codes.PERMISSION_DENIED, "there is no such subscription")
        if not token:
            raise CommandError(codes.BAD_REQUEST, "the token is missing")
        try:
            grant = await tokens.subscription_grant(token, topic=name, identity=self.identity)
        except CommandError as error:
            # A token that is to prolong and has expired itself is not asked for again, as one to begin with is.
            raise CommandError(codes.EXPIRED_ALREADY) if error.code is codes.TOKEN_EXPIRED else error from error
        subscription.grant = grant
        self.switchboard.watch_expiry(self)
        return grant

    def _still_wanted(self, subscription: Subscription) -> None:
        """Raise when the session was closed, or unsubscribed, while the subscription waited."""
        if self.closed_with is not None:
            raise CommandError(codes.INTERNAL, "the session was closed meanwhile")
        if self.subscriptions.get(subscription.topic.name) is not subscription:
            raise UnsubscribedMeanwhile

    def unsubscribe(self, name: str) -> Subscription | None:
        """End a subscription; returns it, or None when there was none."""
        subscription = self.subscriptions.pop(name, None)
        if subscription is None:
            return None
        if subscription.established:  # otherwise `subscribe()` still runs, and takes back what it did
            metrics.subscriptions_in(namespace_of(name)).dec()
            self.switchboard.detach(subscription)
            self.switchboard.counted(name, -1)
            if subscription.joined:
                self.switchboard.presence.leave(subscription)
        return subscription

    def unsubscribe_by_server(self, name: str, code: Code) -> None:
        """End a subscription and tell the client why."""
        subscription = self.unsubscribe(name)
        if subscription is not None:
            self.protocol.unsubscribed(self, subscription, code)
