"""A lean connection to Redis on the event loop: commands of one turn in one write, replies matched in their order.

redis-py's asynchronous client takes a lock, makes a timeout and wakes a task for each reply, which is two thirds of
what an event costs when it goes from one publisher to one subscriber. This connection is a protocol of asyncio with
hiredis' parser: a reply costs a look at a queue. Addresses, TLS and credentials stay redis-py's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import hiredis
import redis.asyncio
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError, InvalidResponse, NoScriptError, ResponseError, TimeoutError

from notifications.events import conf, loop_closing

logger = logging.getLogger(__name__)

INCOMPLETE = object()

# How long a silence that is too long is given to prove itself: uvloop runs timers before it reads what has arrived,
# so that after a turn that took long a timer fires although the reply is there.
GRACE_SECONDS = 0.01


def command(*words: str | bytes | int | float) -> bytes:
    """A command as Redis reads it: an array of bulk strings, see the RESP specification of Redis."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its annotation forgets longer tuples
    return packed


def _reply_error(text: str) -> ResponseError:
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)


def raise_refusal(replies: Sequence[Any]) -> None:
    """Raise the first of the replies that is an error, a ResponseError."""
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply


class Call:
    """Commands on their way to Redis, and who waits for their replies.

    The result of `answered` is the list of `expected` replies, or with `single` the one reply itself, raised if it is
    an error. Without `answered` nobody waits, and the replies are only counted.
    """

    __slots__ = ("answered", "expected", "replies", "since", "single")

    def __init__(
        self, answered: asyncio.Future[Any] | None, *, expected: int = 1, single: bool = False, since: float
    ) -> None:
        self.answered = answered
        self.expected = expected
        self.single = single
        self.since = since
        self.replies: list[Any] = []

    def finish(self) -> None:
        """Give the replies to whoever waits; a caller that was cancelled no longer does."""
        answered = self.answered
        if answered is None or answered.done():
            return
        if not self.single:
            answered.set_result(self.replies)
        elif isinstance(reply := self.replies[0], ResponseError):
            answered.set_exception(reply)
        else:
            answered.set_result(reply)

    def fail(self, error: Exception) -> None:
        """Give an error to whoever waits."""
        if self.answered is not None and not self.answered.done():
            self.answered.set_exception(error)


class CallBack(Call):
    """One command whose reply, or the error in its place, is given to a function as soon as it is there.

    In the turn of the loop that reads it, without a future and whoever awaits that: for what is done many thousand
    times a second.
    """

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[Any], None], *, since: float) -> None:
        super().__init__(None, since=since)
        self._done = done

    def finish(self) -> None:
        self._give(self.replies[0])

    def fail(self, error: Exception) -> None:
        self._give(error)

    def _give(self, outcome: Any) -> None:
        try:
            self._done(outcome)
        except Exception:  # it must not end the connection, on which others wait
            logger.exception("a reply of Redis could not be handled")


class RedisProtocol(asyncio.Protocol):
    """One socket to Redis: writes what a turn of the loop submits at once, and matches replies first in, first out.

    `on_lost` is called once, with this protocol, when the connection has ended for whatever reason; `error` says why.
    Redis has `HUB_REDIS_TIMEOUT_SECONDS` to say something while a call waits; after that the connection is dropped,
    because a late reply would be taken for the next call's.
    """

    __slots__ = (
        "_calls",
        "_heard",
        "_loop",
        "_on_lost",
        "_overdue",
        "_reader",
        "_timer",
        "_transport",
        "_unwritten",
        "error",
    )

    def __init__(self, on_lost: Callable[[RedisProtocol], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=_reply_error, notEnoughData=INCOMPLETE)
        self._calls: deque[Call] = deque()
        self._unwritten: list[bytes] = []
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False
        self.error: Exception | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What uvloop has for a transport is no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._reader.feed(data)
        gets, calls = self._reader.gets, self._calls
        try:
            while (reply := gets()) is not INCOMPLETE:
                call = calls[0]
                call.replies.append(reply)
                if len(call.replies) == call.expected:
                    calls.popleft().finish()
        except (InvalidResponse, IndexError) as error:
            self.drop(ConnectionError(f"what Redis said is no reply: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(ConnectionError(f"the connection to Redis was lost: {error or 'closed by the server'}"))

    # What its users call.

    def submit(self, data: bytes, call: Call) -> None:
        """Send commands in this turn of the loop; the call fails at once on a connection that has ended."""
        if self.error is not None:
            call.fail(self.error)
            return
        if not self._unwritten:
            self._loop.call_soon(self._write)
        self._unwritten.append(data)
        self._calls.append(call)
        if self._timer is None:
            self._timer = self._loop.call_later(conf.get("HUB_REDIS_TIMEOUT_SECONDS"), self._check)

    def drop(self, error: Exception) -> None:
        """End the connection at once; every waiting call fails with the error."""
        self._transport.abort()
        self._ended(error)

    @property
    def idle_seconds(self) -> float:
        """How long Redis has said nothing."""
        return self._loop.time() - self._heard

    @property
    def waiting(self) -> bool:
        """Whether a reply is expected."""
        return bool(self._calls)

    def _write(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        if self.error is None:
            self._transport.write(unwritten[0] if len(unwritten) == 1 else b"".join(unwritten))

    def _check(self) -> None:
        """Drop the connection when Redis has been silent for too long; one timer for all calls."""
        self._timer = None
        if not self._calls:
            self._overdue = False
            return
        due = max(self._heard, self._calls[0].since) + conf.get("HUB_REDIS_TIMEOUT_SECONDS") - self._loop.time()
        if due > 0:
            self._overdue = False
        elif not self._overdue:
            self._overdue, due = True, GRACE_SECONDS
        else:
            self.drop(TimeoutError("Redis did not answer in time"))
            return
        self._timer = self._loop.call_later(due, self._check)

    def _ended(self, error: Exception) -> None:
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._calls = self._calls, deque()
        for call in calls:
            call.fail(error)
        self._on_lost(self)


AnyProtocol = TypeVar("AnyProtocol", bound=RedisProtocol)


class RedisAddress:
    """Where one Redis is, and how to sign in: whatever redis-py reads from a URL and its options."""

    def __init__(self, pool: Any) -> None:
        # Never connected: it is redis-py's reading of the URL, with its defaults.
        self._options: Any = pool.make_connection()

    @classmethod
    def of(cls, url: str) -> RedisAddress:
        """The address that a redis://, rediss:// or unix:// URL names. Raises ValueError for any other."""
        return cls(redis.asyncio.ConnectionPool.from_url(url))

    async def open(self, make_protocol: Callable[[], AnyProtocol]) -> AnyProtocol:
        """Connect within `HUB_REDIS_TIMEOUT_SECONDS`, sign in and select the database.

        Raises OSError, TimeoutError or redis.RedisError when that fails.
        """
        async with asyncio.timeout(conf.get("HUB_REDIS_TIMEOUT_SECONDS")):
            protocol = await self._connected(make_protocol)
            try:
                await self._sign_in(protocol)
            except BaseException:
                protocol.drop(ConnectionError("signing in to Redis failed"))
                raise
        return protocol

    async def _connected(self, make_protocol: Callable[[], AnyProtocol]) -> AnyProtocol:
        loop, options = asyncio.get_running_loop(), self._options
        if isinstance(options, UnixDomainSocketConnection):
            return (await loop.create_unix_connection(make_protocol, options.path))[1]
        tls = options.ssl_context.get() if isinstance(options, SSLConnection) else None
        transport, protocol = await loop.create_connection(make_protocol, options.host, options.port, ssl=tls)
        connected = transport.get_extra_info("socket")
        if options.socket_keepalive:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in options.socket_keepalive_options.items():
                connected.setsockopt(socket.IPPROTO_TCP, option, value)
        return protocol

    async def _sign_in(self, protocol: RedisProtocol) -> None:
        options, commands = self._options, []
        if options.credential_provider is not None:
            commands.append(command("AUTH", *await options.credential_provider.get_credentials_async()))
        elif options.username or options.password:
            credentials = [options.username, options.password or ""] if options.username else [options.password]
            commands.append(command("AUTH", *credentials))
        if options.client_name:
            commands.append(command("CLIENT", "SETNAME", options.client_name))
        if options.db:
            commands.append(command("SELECT", options.db))
        if not commands:
            return
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        protocol.submit(b"".join(commands), Call(answered, expected=len(commands), since=loop.time()))
        for reply in await answered:
            if isinstance(reply, ResponseError):
                raise reply


class RedisConnection:
    """Commands to one Redis from one event loop, pipelined over one socket.

    It connects at the first command and again at the first one after a loss. Nothing is ever sent twice: a command
    whose reply was lost may have happened. Futures raise redis.RedisError, OSError or TimeoutError; see
    `redis_clients.translated_errors()`. Cancelling one leaves the replies of the others where they belong.

    The commands of `greeting` precede all others on every new socket; what Redis replies to them is ignored.
    """

    def __init__(self, address: RedisAddress) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._protocol: RedisProtocol | None = None
        self._connecting: asyncio.Task[RedisProtocol] | None = None
        self._waiting: list[tuple[bytes, Call]] = []
        self.greeting: Sequence[bytes] = ()

    def execute(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command; the future has the reply, or raises ResponseError if that is an error."""
        return self._submit(command, expected=1, single=True)

    def execute_many(self, commands: Sequence[bytes]) -> asyncio.Future[list[Any]]:
        """Send commands one after the other; the future has their replies, ResponseErrors in their places."""
        if not commands:
            nothing: asyncio.Future[list[Any]] = self._loop.create_future()
            nothing.set_result([])
            return nothing
        return self._submit(b"".join(commands), expected=len(commands), single=False)

    def execute_soon(self, command: bytes, done: Callable[[Any], None]) -> None:
        """Send a command, and call `done` with the reply, or with the exception that `execute()` would raise."""
        self._send(command, CallBack(done, since=self._loop.time()))

    def _submit(self, data: bytes, *, expected: int, single: bool) -> asyncio.Future[Any]:
        answered: asyncio.Future[Any] = self._loop.create_future()
        self._send(data, Call(answered, expected=expected, single=single, since=self._loop.time()))
        return answered

    def _send(self, data: bytes, call: Call) -> None:
        loop = self._loop
        if asyncio.get_running_loop() is not loop:
            raise RuntimeError("a connection to Redis belongs to the event loop on which it was made")
        if self._protocol is not None:
            self._protocol.submit(data, call)
        else:
            self._waiting.append((data, call))
            if self._connecting is None:
                self._connecting = loop.create_task(self._address.open(lambda: RedisProtocol(self._lost)))
                self._connecting.add_done_callback(self._connected)

    def _connected(self, connecting: asyncio.Task[RedisProtocol]) -> None:
        if connecting is not self._connecting:  # closed meanwhile
            if not connecting.cancelled() and connecting.exception() is None:
                connecting.result().drop(_closed())
            return
        self._connecting = None
        if connecting.cancelled():
            self._fail_waiting(_closed())
        elif isinstance(error := connecting.exception(), Exception):
            self._fail_waiting(error)
        else:
            protocol = connecting.result()
            self._protocol = protocol if protocol.error is None else None
            if self.greeting:
                greeted = Call(None, expected=len(self.greeting), since=self._loop.time())
                protocol.submit(b"".join(self.greeting), greeted)
            waiting, self._waiting = self._waiting, []
            for data, call in waiting:
                protocol.submit(data, call)

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        for _, call in waiting:
            call.fail(error)

    def _lost(self, protocol: RedisProtocol) -> None:
        if protocol is self._protocol:
            self._protocol = None

    def close(self) -> None:
        """Close the socket; calls that wait raise ConnectionError. A later command connects again."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._fail_waiting(_closed())
        if self._protocol is not None:
            self._protocol.drop(_closed())


def _closed() -> ConnectionError:
    return ConnectionError("the connection to Redis was closed")


_of_loops: dict[asyncio.AbstractEventLoop, tuple[str, RedisConnection]] = {}


def connection() -> RedisConnection:
    """The connection of the running event loop to `HUB_REDIS_URL`."""
    loop, url = asyncio.get_running_loop(), conf.get("HUB_REDIS_URL")
    known = _of_loops.get(loop)
    if known is None or known[0] != url:
        if known is not None:
            known[1].close()
            loop_closing.closed_already(known[1])
        loop_closing.forget_closed(_of_loops)
        known = _of_loops[loop] = (url, RedisConnection(RedisAddress.of(url)))
        loop_closing.close_with_loop(known[1])
    return known[1]
