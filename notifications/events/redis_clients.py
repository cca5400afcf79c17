"""Long-lived connections to Redis: one pool per process for synchronous callers, one per event loop for others."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable

_per_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[str, redis.asyncio.Redis]] = WeakKeyDictionary()


def sync_client() -> redis.Redis:
    """The client for synchronous code. Its pool notices a fork and a closed connection by itself."""
    return _sync_client(conf.get("HUB_REDIS_URL"))


@functools.cache
def _sync_client(url: str) -> redis.Redis:
    timeout = conf.get("HUB_REDIS_TIMEOUT_SECONDS")
    # No retries: an append whose answer was lost may have happened, and would then be there twice.
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


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
        raise LogUnavailable(f"Redis did not take the call: {error}") from error
