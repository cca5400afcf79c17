"""Where the kept events of a topic are: one small interface, and memory, Redis and database behind it."""

from __future__ import annotations

import functools

from notifications.events import conf, local
from notifications.events.logs.base import Appended, Done, Draft, Log, Page, Read
from notifications.events.retention import Kind, Retention

__all__ = ["Appended", "Done", "Draft", "Log", "Page", "Read", "log_for", "memory_log", "window_log"]


@functools.cache
def memory_log() -> Log:
    """The memory log of this process."""
    from notifications.events.logs.memory import MemoryLog

    return MemoryLog()


@functools.cache
def _owner_log() -> Log:
    from notifications.events.logs.owner import OwnerLog

    return OwnerLog()


@functools.cache
def _redis_log(url: str) -> Log:
    from notifications.events.logs.redis import RedisLog

    return RedisLog(url)


@functools.cache
def _database_log() -> Log:
    from notifications.events.logs.database import DatabaseLog

    return DatabaseLog()


def window_log() -> Log:
    """The log of topics that are not durable: Redis where `HUB_REDIS_URL` says so, memory otherwise."""
    if url := conf.get("HUB_REDIS_URL"):
        return _redis_log(url)
    return _owner_log() if local.is_remote() else memory_log()


def log_for(retention: Retention) -> Log:
    """The log that keeps the events of topics with this retention."""
    return _database_log() if retention.kind is Kind.DURABLE else window_log()
