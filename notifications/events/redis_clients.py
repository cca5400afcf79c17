"""Long-lived connections to Redis: one pool per process for synchronous callers, one per event loop for others."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.exceptions import ResponseError
from redis.retry import Retry

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable

_per_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[str, redis.asyncio.Redis]] = WeakKeyDictionary()


def sync_client() -> redis.Redis:
    """The client for synchronous code. Its pool notices a fork and a closed connection by itself."""
    return _sync_client(conf.get("HUB_REDIS_URL"))


@functools.cache
def _sync_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, **_options())


def _options() -> dict[str, Any]:
    timeout = conf.get("HUB_REDIS_TIMEOUT_SECONDS")
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        # No retries: an append whose answer was lost may have happened, and would then be there twice.
        "retry": Retry(NoBackoff(), 0),
    }


class KeptConnections:
    """Connections of this process to one Redis, for synchronous code that calls often; any thread may.

    redis-py's client spends as much on a command as its two system calls cost, and more for each argument: here one
    takes a whole command that is packed already. Addresses, TLS and credentials stay redis-py's. Nothing is sent
    twice, not even when a connection breaks: a command whose answer was lost may have happened.
    """

    def __init__(self, url: str, *, greeting: Sequence[bytes] = ()) -> None:
        """Connect to `url` when needed; each new connection begins with the commands of `greeting`."""
        # RESP2 has no pushes, so that whatever can be read from a connection that nobody uses means its end.
        parsed = parse_url(url)  # type: ignore[no-untyped-call]
        self._options: dict[str, Any] = {"protocol": 2, **_options(), **parsed}
        self._class: Any = self._options.pop("connection_class", Connection)
        self._greeting = greeting
        # Those that no thread uses, the last used at the end. Only appended to and popped from, which is atomic.
        self._idle: list[Any] = []

    def call(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands in one write; their answers in order, with a ResponseError where one was refused.

        Raises redis.RedisError or OSError when Redis cannot be reached, or is silent for `HUB_REDIS_TIMEOUT_SECONDS`.
        """
        connection = self._take()
        answers = _exchange(connection, commands)
        self._idle.append(connection)
        return answers

    def _take(self) -> Any:
        """A connection that works as far as can be known before writing to it."""
        process = os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            # After a fork it is the parent's, which goes on using the socket.
            if connection.pid == process and _is_quiet(connection):
                return connection
            connection.disconnect()
        connection = self._class(**self._options)
        connection.connect()
        if self._greeting:
            _exchange(connection, self._greeting)
        return connection


def _is_quiet(connection: Any) -> bool:
    try:
        return not connection.can_read()
    except (redis.RedisError, OSError):  # Redis has closed it: it was restarted, or ends what is idle
        return False


def _exchange(connection: Any, commands: Sequence[bytes]) -> list[Any]:
    answers: list[Any] = []
    try:
        connection.send_packed_command([b"".join(commands)], check_health=False)
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:
                answers.append(error)
    except BaseException:
        # A late answer would be taken for the next command's.
        connection.disconnect()
        raise
    return answers


def async_client() -> redis.asyncio.Redis:
    """The client for code on the running event loop."""
    loop, url = asyncio.get_running_loop(), conf.get("HUB_REDIS_URL")
    known = _per_loop.get(loop)
    if known is None or known[0] != url:
        timeout = conf.get("HUB_REDIS_TIMEOUT_SECONDS")
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            socket_keepalive=True,
            # redis-py 8 allows 100 connections by default and fails above; this many commands wait at once.
            max_connections=10_000,
            retry=AsyncRetry(NoBackoff(), 0),
        )
        known = _per_loop[loop] = (url, client)
    return known[1]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise LogUnavailable for every way in which Redis cannot be reached or does not answer in time."""
    try:
        yield
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise translated_error(error) from error


def translated_error(error: Exception) -> LogUnavailable:
    """The LogUnavailable that says what Redis, or the way to it, raised."""
    return LogUnavailable(f"Redis did not take the call: {error}")
