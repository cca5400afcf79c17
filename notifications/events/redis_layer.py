"""The channel layer of a hub of several processes: Redis pub/sub in the format of channels-redis, told what it loses.

The pub/sub layer of channels-redis returns from `group_add` before Redis has subscribed, wakes ten times a second,
takes a lock and a round trip for each group, and never says that it lost its connection. This layer shares its names
and messages with it, so that processes with either can run side by side, and receives by itself.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from channels_redis.pubsub import RedisPubSubChannelLayer
from channels_redis.utils import create_pool, decode_hosts
from django.core.exceptions import ImproperlyConfigured

from notifications.events import loop_closing, metrics
from notifications.events.redis_clients import translated_errors
from notifications.events.redis_connection import RedisAddress, RedisConnection, command
from notifications.events.redis_subscriber import RedisSubscriber

logger = logging.getLogger(__name__)

CAPACITY = 10_000

Message = dict[str, Any]
Listener = Callable[[], None]
Receiver = Callable[[Message], None]


def unsupported_hosts(hosts: Any) -> str | None:
    """Why this layer cannot use a `hosts` option, or None: it needs one Redis, without Sentinel."""
    try:
        found = decode_hosts(hosts)
        if len(found) > 1:
            return f"it takes one Redis, not {len(found)}"
        if "master_name" in found[0]:
            return "it does not ask Redis Sentinel"
        create_pool(found[0])
    except (TypeError, ValueError) as error:
        return str(error)
    return None


class _Mailbox:
    """What one channel has not received yet; beyond its capacity the oldest is lost.

    Nothing waits in it while it has a `receiver`, which is called with each message as it arrives.
    """

    __slots__ = ("closed", "lost", "messages", "name", "receiver", "waiting")

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.messages: deque[bytes] = deque(maxlen=capacity)
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.lost = 0
        self.closed = False
        self.receiver: Callable[[bytes], None] | None = None

    def put(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver(data)
            return
        messages = self.messages
        if len(messages) == messages.maxlen:
            if not self.lost:
                logger.warning("channel %s is not read: it loses its oldest messages", self.name)
            self.lost += 1
        messages.append(data)
        if self.waiting:
            self.wake()

    def wake(self) -> None:
        """Let one of those who wait look."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def filled(self) -> None:
        """Wait until there is a message."""
        while not self.messages:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            await waiter


class _LoopLayer:
    """The layer on one event loop: its channels and groups, and its two connections."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        prefix: str,
        capacity: int,
        on_disconnect: bytes | None = None,
        on_reconnect: bytes | None = None,
    ) -> None:
        self.prefix = prefix
        self._capacity = capacity
        self._on_disconnect = on_disconnect
        self._on_reconnect = on_reconnect
        self.commands = RedisConnection(address)
        self.channels: dict[str, _Mailbox] = {}
        # Where the messages of a Redis channel go: a group has a single member in most processes, and is then one
        # entry of this dict and nothing else.
        self.routes: dict[bytes, _Mailbox | dict[str, _Mailbox]] = {}
        self.listeners: list[Listener] = []
        self._subscriber = RedisSubscriber(
            address, self.routes, self._deliver, lost=self._lost, restored=self._restored
        )

    def close(self) -> asyncio.Task[None] | None:
        """Close the connections; returns the task that ends with them, if one was connecting."""
        self.commands.close()
        return self._subscriber.close()

    async def aclose(self) -> None:
        """Close the connections; nothing is left running then."""
        connecting = self.close()
        if connecting is not None:
            await asyncio.wait([connecting])
        # A transport closes its socket in a turn of its own.
        await asyncio.sleep(0)

    # Receiving.

    def _deliver(self, redis_channel: bytes, data: bytes) -> None:
        route = self.routes.get(redis_channel)
        if type(route) is _Mailbox:
            if route.closed:
                self._leave([(redis_channel, route)])
            else:
                route.put(data)
        elif type(route) is dict:
            gone = []
            for mailbox in route.values():
                if mailbox.closed:
                    gone.append((redis_channel, mailbox))
                else:
                    mailbox.put(data)
            if gone:
                self._leave(gone)

    def _lost(self) -> None:
        self._tell_channels(self._on_disconnect)

    def _restored(self) -> None:
        self._tell_channels(self._on_reconnect)
        self.tell_listeners()

    def _tell_channels(self, data: bytes | None) -> None:
        if data is not None:
            for mailbox in list(self.channels.values()):
                mailbox.put(data)

    def tell_listeners(self) -> None:
        """Say that messages may have been lost."""
        for listener in list(self.listeners):
            try:
                listener()
            except Exception:
                logger.exception("a listener of the channel layer failed")

    async def open_channel(self, channel: str) -> _Mailbox:
        """The mailbox of a channel, made and subscribed if there is none."""
        mailbox = self.channels.get(channel)
        if mailbox is None:
            mailbox = self.channels[channel] = _Mailbox(channel, self._capacity)
            redis_channel = channel.encode()
            self.routes[redis_channel] = mailbox
            try:
                await self._confirmed([redis_channel])
            except BaseException:
                self.close_channel(mailbox)
                raise
        return mailbox

    def close_channel(self, mailbox: _Mailbox) -> None:
        """Forget a channel. Groups find out when they have a message for it."""
        if self.channels.get(mailbox.name) is mailbox:
            del self.channels[mailbox.name]
            mailbox.closed = True
            self._leave([(mailbox.name.encode(), mailbox)])

    async def filled(self, channel: str) -> _Mailbox:
        """The mailbox of a channel when it has a message."""
        mailbox = await self.open_channel(channel)
        if not mailbox.messages:
            try:
                await mailbox.filled()
            except BaseException:
                # As in channels-redis: who stops waiting has closed its socket, and nobody else reads the channel.
                self.close_channel(mailbox)
                raise
        if mailbox.lost:
            metrics.layer_messages_lost.inc(mailbox.lost)
            logger.warning("channel %s lost %d messages", channel, mailbox.lost)
            mailbox.lost = 0
            asyncio.get_running_loop().call_soon(self.tell_listeners)
        return mailbox

    # Groups.

    def group_channel(self, group: str) -> bytes:
        """The Redis channel of a group."""
        return f"{self.prefix}__group__{group}".encode()

    async def join(self, groups: Collection[str], channel: str) -> None:
        """Make a channel of this process a member of groups, and wait until Redis has confirmed."""
        mailbox = self.channels.get(channel)
        if mailbox is None:
            raise RuntimeError(f"only a channel that this process made can join a group, and {channel!r} is none")
        redis_channels = [self.group_channel(group) for group in groups]
        joined, new = [], []
        for redis_channel in redis_channels:
            route = self.routes.get(redis_channel)
            if route is None:
                self.routes[redis_channel] = mailbox
                new.append(redis_channel)
            elif type(route) is dict:
                if channel in route:
                    continue
                route[channel] = mailbox
            elif route is mailbox:
                continue
            else:
                assert isinstance(route, _Mailbox)
                self.routes[redis_channel] = {route.name: route, channel: mailbox}
            joined.append((redis_channel, mailbox))
        if new or not self._subscriber.settled:
            try:
                # Those it is a member of already as well: somebody else's confirmation may still be missing.
                await self._confirmed(new if self._subscriber.settled else redis_channels)
            except BaseException:
                self._leave(joined)
                raise

    async def _confirmed(self, redis_channels: list[bytes]) -> None:
        with translated_errors():
            # Shielded, because all callers of a turn wait for the same confirmation.
            await asyncio.shield(self._subscriber.subscribe(redis_channels))

    def leave(self, groups: Collection[str], channel: str) -> None:
        """Take a channel out of groups."""
        leaving = []
        for group in groups:
            redis_channel = self.group_channel(group)
            route = self.routes.get(redis_channel)
            if type(route) is dict and channel in route:
                leaving.append((redis_channel, route[channel]))
            elif type(route) is _Mailbox and route.name == channel:
                leaving.append((redis_channel, route))
        self._leave(leaving)

    def _leave(self, leaving: list[tuple[bytes, _Mailbox]]) -> None:
        """Take mailboxes off Redis channels, and unsubscribe from those that have none left."""
        empty = []
        for redis_channel, mailbox in leaving:
            route = self.routes.get(redis_channel)
            if route is mailbox:
                del self.routes[redis_channel]
                empty.append(redis_channel)
            elif type(route) is dict and route.get(mailbox.name) is mailbox:
                del route[mailbox.name]
                if len(route) == 1:
                    self.routes[redis_channel] = next(iter(route.values()))
        if empty:
            self._subscriber.unsubscribe(empty)


class RedisChannelLayer(RedisPubSubChannelLayer):  # type: ignore[misc]
    """A channel layer on Redis pub/sub, of one connection per event loop for what it receives.

    Takes the options of the pub/sub layer of channels-redis and understands its processes; in addition `capacity`, how
    many messages may wait in a channel before the oldest are lost, and `on_disconnect` and `on_reconnect` work: types
    of messages that every channel gets. It takes a single Redis without Sentinel; ImproperlyConfigured says so.

    What cannot be told to Redis within `HUB_REDIS_TIMEOUT_SECONDS` raises LogUnavailable. Receiving never does: it
    goes on when Redis is back, and `add_reconnect_listener()` tells.
    """

    extensions = ["groups", "flush"]

    def __init__(
        self,
        hosts: Any = None,
        prefix: str = "asgi",
        capacity: int = CAPACITY,
        on_disconnect: str | None = None,
        on_reconnect: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(hosts=hosts, prefix=prefix, **options)
        if (reason := unsupported_hosts(hosts)) is not None:
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS: {type(self).__name__} cannot use these hosts: {reason}. "
                "Give one, or use channels_redis.pubsub.RedisPubSubChannelLayer."
            )
        self._host: dict[str, Any] = decode_hosts(hosts)[0]
        self._prefix = prefix
        self._capacity = capacity
        self._notices = {
            name: None if type is None else self.serialize({"type": type})
            for name, type in (("on_disconnect", on_disconnect), ("on_reconnect", on_reconnect))
        }
        self._of_loop: dict[asyncio.AbstractEventLoop, _LoopLayer] = {}

    def __getattr__(self, name: str) -> Any:
        # The stock layer would look for it on a layer of its own for the running loop.
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def _here(self) -> _LoopLayer:
        """The part of the layer that belongs to the running loop."""
        loop = asyncio.get_running_loop()
        found = self._of_loop.get(loop)
        if found is None:
            loop_closing.forget_closed(self._of_loop)
            address = RedisAddress(create_pool(self._host))
            found = self._of_loop[loop] = _LoopLayer(
                address, prefix=self._prefix, capacity=self._capacity, **self._notices
            )
            loop_closing.close_with_loop(found)
        return found

    async def new_channel(self, prefix: str = "specific.") -> str:
        """The name of a new channel that only this process receives from."""
        channel = f"{self._prefix}{prefix}{uuid.uuid4().hex}"
        await self._here().open_channel(channel)
        return channel

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel of any process. Raises LogUnavailable."""
        await self._publish(channel.encode(), message)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to the members of a group in all processes. Raises LogUnavailable."""
        await self._publish(self._here().group_channel(group), message)

    async def _publish(self, redis_channel: bytes, message: Message) -> None:
        with translated_errors():
            await self._here().commands.execute(command("PUBLISH", redis_channel, self.serialize(message)))

    async def receive(self, channel: str) -> Message:
        """The next message of a channel. To cancel this is to give the channel up."""
        mailbox = await self._here().filled(channel)
        data = mailbox.messages.popleft()
        if mailbox.messages:
            mailbox.wake()
        message: Message = self.deserialize(data)
        return message

    async def receive_by(self, channel: str, receiver: Receiver) -> Listener:
        """Have `receiver(message)` called with every message of a channel, in the turn of the loop that reads it.

        For whom each hop costs: nothing waits in the channel, nor for a task that receives. The messages that are there
        already come first. What cannot be decoded, and a receiver that fails, is logged.

        Returns the function that ends it, and gives the channel up.
        """
        deserialize = self._serializer.deserialize

        def receive(data: bytes) -> None:
            try:
                message = deserialize(data)
            except Exception:
                logger.exception("a message of the channel layer cannot be decoded")
                return
            try:
                receiver(message)
            except Exception:
                logger.exception("a message of the channel layer could not be handled")

        here = self._here()
        mailbox = await here.open_channel(channel)
        mailbox.receiver = receive
        waiting, mailbox.messages = mailbox.messages, deque(maxlen=mailbox.messages.maxlen)
        for data in waiting:
            receive(data)
        return functools.partial(here.close_channel, mailbox)

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel of this process a member of a group; what is published afterwards arrives.

        Raises LogUnavailable when Redis does not confirm, and RuntimeError for a channel of another process.
        """
        await self._here().join([group], channel)

    async def group_add_many(self, groups: Collection[str], channel: str) -> None:
        """`group_add()` for many groups in one command."""
        await self._here().join(groups, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group: at once, even if Redis is down."""
        self._here().leave([group], channel)

    async def group_discard_many(self, groups: Collection[str], channel: str) -> None:
        """`group_discard()` for many groups in one command."""
        self._here().leave(groups, channel)

    def add_reconnect_listener(self, callback: Listener) -> None:
        """Have `callback()` called on the running loop whenever messages may have been lost.

        That is after a reconnect, when every group is subscribed again, and when a channel lost messages beyond its
        capacity.
        """
        self._here().listeners.append(callback)

    def remove_reconnect_listener(self, callback: Listener) -> None:
        """Call a listener no longer."""
        listeners = self._here().listeners
        if callback in listeners:
            listeners.remove(callback)

    async def flush(self) -> None:
        """Forget the channels, groups and listeners of the running loop and close its connections."""
        found = self._of_loop.pop(asyncio.get_running_loop(), None)
        if found is not None:
            loop_closing.closed_already(found)
            await found.aclose()
