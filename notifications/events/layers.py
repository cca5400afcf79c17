"""The channel layer of a hub that is one process, and the bridge to plain Channels groups.

Channels' own `InMemoryChannelLayer` walks every channel of every group on each send and receive, and may only be
used on the loop that made it. The embedded worker publishes from its threads, so this layer hands messages over
with `call_soon_threadsafe`, and costs what the number of receivers costs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections import defaultdict
from copy import deepcopy
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from notifications.events import conf, local
from notifications.events.exceptions import LogUnavailable
from notifications.events.threads import running_loop

logger = logging.getLogger(__name__)

Message = dict[str, Any]


class _Mailbox:
    """The queue of one channel, filled from any thread and read on the loop that made it."""

    __slots__ = ("capacity", "loop", "queue")

    def __init__(self, capacity: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.capacity = capacity

    def put(self, message: Message) -> bool:
        """Queue the message; False when the reader is too far behind or gone."""
        if self.queue.qsize() >= self.capacity or self.loop.is_closed():
            return False
        if running_loop() is self.loop:
            self.queue.put_nowait(message)
        else:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, message)
        return True


class InProcessChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer in the memory of one process, usable from all its threads and loops.

    With `HUB_SOCKET` set, other processes that are configured with it are connected to the process that owns the
    memory log: what they send arrives there, and channels that they make receive from there.
    """

    extensions = ["groups", "flush"]

    def __init__(self, capacity: int = 10_000, **options: Any) -> None:
        super().__init__(capacity=capacity, **options)
        # Guards channels and groups; never held while waiting, only while a message is put into queues.
        self._lock = threading.RLock()
        self._channels: dict[str, _Mailbox | _RemoteMailbox] = {}
        self._groups: defaultdict[str, set[str]] = defaultdict(set)

    async def new_channel(self, prefix: str = "specific.") -> str:
        channel = f"{prefix}{uuid.uuid4().hex}"
        with self._lock:
            self._channels[channel] = _RemoteMailbox() if local.is_remote() else _Mailbox(self.capacity)
        return channel

    async def send(self, channel: str, message: Message) -> None:
        if local.is_remote() and channel not in self._channels:
            await asyncio.to_thread(local.owner.call, "send", channel=channel, message=message)
        else:
            self.deliver(channel, message)

    def deliver(self, channel: str, message: Message) -> None:
        """Put a message into a channel of this process, from any thread. Raises ChannelFull at its capacity."""
        self.require_valid_channel_name(channel)
        with self._lock:
            mailbox = self._channels.get(channel)
        if isinstance(mailbox, _Mailbox) and not mailbox.put(_copied(message)):
            raise ChannelFull(channel)

    async def receive(self, channel: str) -> Message:
        with self._lock:
            mailbox = self._channels.get(channel)
            if mailbox is None:
                mailbox = self._channels[channel] = _Mailbox(self.capacity)
        try:
            if isinstance(mailbox, _RemoteMailbox):
                return await mailbox.receive()
            return await mailbox.queue.get()
        except asyncio.CancelledError:
            # As in channels-redis: who stops waiting has closed its socket, and nobody else reads the channel.
            self._forget(channel)
            raise

    def _forget(self, channel: str) -> None:
        with self._lock:
            mailbox = self._channels.pop(channel, None)
            for group in [group for group, members in self._groups.items() if channel in members]:
                self._leave(group, channel)
        if isinstance(mailbox, _RemoteMailbox):
            mailbox.close()

    def _leave(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.discard(channel)
            if not members:
                del self._groups[group]

    async def group_add(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        with self._lock:
            mailbox = self._channels.get(channel)
            self._groups[group].add(channel)
        if isinstance(mailbox, _RemoteMailbox):
            await mailbox.join(group)

    async def group_discard(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        with self._lock:
            mailbox = self._channels.get(channel)
            self._leave(group, channel)
        if isinstance(mailbox, _RemoteMailbox):
            await mailbox.leave(group)

    async def group_send(self, group: str, message: Message) -> None:
        if local.is_remote():
            await asyncio.to_thread(local.owner.call, "group_send", group=group, message=message)
        else:
            self.deliver_to_group(group, message)

    def deliver_to_group(self, group: str, message: Message) -> None:
        """Put a message into the channels of a group, from any thread.

        Per receiver the messages of one thread keep their order, and so do those sent under one lock. A receiver
        at its capacity misses the message, as the specification of channel layers allows.
        """
        self.require_valid_group_name(group)
        with self._lock:
            for channel in self._groups.get(group, ()):
                mailbox = self._channels.get(channel)
                if isinstance(mailbox, _Mailbox) and not mailbox.put(_copied(message)):
                    logger.warning("channel %s is full: a message to group %s was dropped", channel, group)

    async def flush(self) -> None:
        with self._lock:
            self._channels.clear()
            self._groups.clear()


class _RemoteMailbox:
    """A channel of this process that is a member of groups in the process that owns the memory log."""

    def __init__(self) -> None:
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        # Who joins and who receives may both find that there is no connection, and must not make two.
        self._connecting = asyncio.Lock()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._connecting:
            if self._streams is None:
                path = conf.get("HUB_SOCKET")
                try:
                    self._streams = await asyncio.open_unix_connection(path, limit=local.MAX_LINE_BYTES)
                except OSError as error:
                    raise LogUnavailable(local.NOBODY_ANSWERS.format(path)) from error
            return self._streams

    async def _tell(self, operation: str, group: str) -> None:
        _, writer = await self._connected()
        writer.write(msgspec.json.encode({"operation": operation, "arguments": {"group": group}}) + b"\n")
        await writer.drain()

    async def join(self, group: str) -> None:
        await self._tell("join", group)

    async def leave(self, group: str) -> None:
        await self._tell("leave", group)

    async def receive(self) -> Message:
        reader, _ = await self._connected()
        line = await reader.readline()
        if not line:
            self.close()
            raise LogUnavailable("the hub process closed the connection")
        message: Message = msgspec.json.decode(line)
        return message

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _copied(message: Message) -> Message:
    """The message for one receiver: handlers may change theirs, and must not change another's."""
    if any(isinstance(value, dict | list | set) for value in message.values()):
        return deepcopy(message)
    return dict(message)
