"""The receiving side of Redis pub/sub: one connection that stays subscribed, whatever happens to Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError

from notifications.events.redis_connection import INCOMPLETE, Call, RedisAddress, RedisProtocol, command

logger = logging.getLogger(__name__)

# Names in one SUBSCRIBE: few enough that Redis serves others in between.
NAMES_PER_COMMAND = 1_000
# A silent connection is asked for a sign of life, as one that was cut in between never ends by itself.
HEALTH_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 1.0

# A read of this size says that more is waiting. uvloop would go on reading, up to 32 times before anything else runs,
# and one turn of the loop would bring more messages than a channel holds.
FULL_READ_BYTES = 65_536

Deliver = Callable[[bytes, bytes], None]


class SubscribedProtocol(RedisProtocol):
    """A socket in subscribed mode: messages go straight to `deliver(channel, data)`, the rest are confirmations."""

    __slots__ = ("_deliver",)

    def __init__(self, on_lost: Callable[[RedisProtocol], None], deliver: Deliver) -> None:
        super().__init__(on_lost)
        self._deliver = deliver

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._reader.feed(data)
        gets, deliver = self._reader.gets, self._deliver
        try:
            while (reply := gets()) is not INCOMPLETE:
                if type(reply) is list and reply[0] == b"message":
                    deliver(reply[1], reply[2])
                else:
                    self._confirmed(reply)
        except (InvalidResponse, IndexError) as error:
            self.drop(ConnectionError(f"what Redis said is no reply: {error}"))
        if len(data) >= FULL_READ_BYTES and self.error is None:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.error is None:
            self._transport.resume_reading()

    def _confirmed(self, reply: object) -> None:
        call = self._calls[0]
        call.replies.append(reply)
        # A refused SUBSCRIBE is answered once, not once per name.
        if len(call.replies) == call.expected or isinstance(reply, ResponseError):
            self._calls.popleft()
            if isinstance(reply, ResponseError):
                call.fail(reply)
            else:
                call.finish()


class RedisSubscriber:
    """Keeps one connection of this event loop subscribed to `names`, a collection that its owner changes.

    The owner changes `names` first, then says so with `subscribe()` and `unsubscribe()`; the last word of a turn of
    the loop counts. After a loss it connects again, in growing intervals, for as long as there are names, subscribes
    to all of them, and then calls `restored`; `lost` was called before. `deliver` must not raise.
    """

    def __init__(
        self,
        address: RedisAddress,
        names: Collection[bytes],
        deliver: Deliver,
        *,
        lost: Callable[[], None],
        restored: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._names = names
        self._deliver = deliver
        self._tell_lost = lost
        self._tell_restored = restored
        self._protocol: SubscribedProtocol | None = None
        # Whether messages may have been missed since all names were subscribed.
        self._broken = False
        self._closed = False
        self._changes: dict[bytes, bool] = {}
        self._turn: asyncio.Future[None] | None = None
        self._unconfirmed = 0
        self._joining: list[asyncio.Future[None]] = []
        self._connecting: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._health: asyncio.TimerHandle | None = None

    @property
    def settled(self) -> bool:
        """Whether Redis has confirmed every name there is."""
        return self._protocol is not None and not self._unconfirmed and self._turn is None

    def subscribe(self, names: Iterable[bytes]) -> asyncio.Future[None]:
        """Subscribe at the end of this turn; the future is done when Redis has confirmed.

        It is shared by all callers of the turn: shield it. It raises redis.RedisError, OSError or TimeoutError.
        """
        for name in names:
            self._changes[name] = True
        if self._turn is None:
            self._turn = self._loop.create_future()
            self._turn.add_done_callback(_retrieve)
            self._loop.call_soon(self._flush)
        return self._turn

    def unsubscribe(self, names: Iterable[bytes]) -> None:
        """Unsubscribe at the end of this turn."""
        if not self._changes and self._turn is None:
            self._loop.call_soon(self._flush)
        for name in names:
            self._changes[name] = False

    def _flush(self) -> None:
        changes, self._changes = self._changes, {}
        turn, self._turn = self._turn, None
        if self._closed:
            _settle(turn, _closed())
        elif self._protocol is None:
            # What is wanted by then is subscribed as soon as there is a connection; what is not, is not.
            if turn is not None:
                self._joining.append(turn)
                self._connect()
        else:
            self._submit("UNSUBSCRIBE", [name for name, wanted in changes.items() if not wanted])
            self._confirm(self._submit("SUBSCRIBE", [name for name, wanted in changes.items() if wanted]), turn)

    def _submit(self, word: str, names: list[bytes]) -> list[asyncio.Future[list[object]]]:
        assert self._protocol is not None
        answers = []
        for start in range(0, len(names), NAMES_PER_COMMAND):
            chunk = names[start : start + NAMES_PER_COMMAND]
            answered: asyncio.Future[list[object]] = self._loop.create_future()
            answered.add_done_callback(_retrieve)
            call = Call(answered, expected=len(chunk), since=self._loop.time())
            self._protocol.submit(command(word, *chunk), call)
            answers.append(answered)
        return answers

    def _confirm(self, answers: list[asyncio.Future[list[object]]], *turns: asyncio.Future[None] | None) -> None:
        """Settle the turns when all of the answers are there."""
        missing = len(answers)
        failed: BaseException | None = None

        def answer(answered: asyncio.Future[list[object]]) -> None:
            nonlocal missing, failed
            missing -= 1
            failed = failed or (_closed() if answered.cancelled() else answered.exception())
            if not missing:
                self._unconfirmed -= 1
                for turn in turns:
                    _settle(turn, failed)

        if not answers:
            for turn in turns:
                _settle(turn, None)
            return
        self._unconfirmed += 1
        for answered in answers:
            answered.add_done_callback(answer)

    # Connecting.

    def _connect(self) -> None:
        self._wanted.set()
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect_until_subscribed())
            self._connecting.add_done_callback(self._connecting_ended)

    def _connecting_ended(self, connecting: asyncio.Task[None]) -> None:
        self._connecting = None
        if connecting.cancelled() or self._closed:
            self._fail_joining(_closed())
        elif self._protocol is None and (self._names or self._joining):
            self._connect()  # lost in the very turn in which it was made

    def _fail_joining(self, error: Exception) -> None:
        joining, self._joining = self._joining, []
        for turn in joining:
            _settle(turn, error)

    async def _connect_until_subscribed(self) -> None:
        retry_seconds, told = FIRST_RETRY_SECONDS, False
        while self._names or self._joining:
            self._wanted.clear()
            try:
                await self._connect_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                if not told:
                    told = True
                    logger.warning("the channel layer cannot reach Redis: %s; trying again", error)
                self._fail_joining(error if isinstance(error, RedisError) else ConnectionError(str(error)))
            else:
                return
            # Who joins a group meanwhile is not kept waiting for the end of an interval.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), retry_seconds)
            retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)

    async def _connect_once(self) -> None:
        protocol = await self._address.open(lambda: SubscribedProtocol(self._lost, self._deliver))
        if protocol.error is not None:
            raise protocol.error
        self._protocol = protocol
        # From here on changes are sent behind these names, so that none is lost and the last word counts.
        joining, self._joining = self._joining, []
        answers = self._submit("SUBSCRIBE", list(self._names))
        self._confirm(answers, *joining)
        self._health = self._loop.call_later(HEALTH_SECONDS, self._check_health)
        try:
            for answered in answers:
                await answered
        except BaseException:
            protocol.drop(ConnectionError("Redis did not confirm the groups"))
            raise
        if self._broken and self._protocol is protocol:
            self._broken = False
            logger.warning("the channel layer is connected to Redis again")
            self._tell_restored()

    def _check_health(self) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        if not protocol.waiting and protocol.idle_seconds >= HEALTH_SECONDS / 2:
            protocol.submit(command("PING"), Call(None, since=self._loop.time()))
        self._health = self._loop.call_later(HEALTH_SECONDS, self._check_health)

    def _lost(self, protocol: RedisProtocol) -> None:
        if protocol is not self._protocol:
            return
        self._protocol = None
        if self._health is not None:
            self._health.cancel()
            self._health = None
        if self._closed:
            return
        if not self._broken:
            self._broken = True
            logger.warning("the channel layer lost its connection to Redis: %s", protocol.error)
            self._tell_lost()
        if self._names and self._connecting is None:
            self._connect()

    def close(self) -> asyncio.Task[None] | None:
        """Close the connection for good; returns the task that ends with it, if one was connecting."""
        self._closed = True
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        if self._protocol is not None:
            self._protocol.drop(_closed())
        return connecting


def _settle(turn: asyncio.Future[None] | None, error: BaseException | None) -> None:
    if turn is None or turn.done():
        return
    if error is None:
        turn.set_result(None)
    else:
        turn.set_exception(error)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody may be waiting for any more."""
    if not future.cancelled():
        future.exception()


def _closed() -> ConnectionError:
    return ConnectionError("the connection to Redis was closed")
