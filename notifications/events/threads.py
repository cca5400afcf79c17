"""The threads on which a server process uses the database.

Django's `sync_to_async` runs all database work of a process on one thread, where one slow query stops every
other; these threads are the hub's own, so that permission checks never wait for a page's query.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from django.db import close_old_connections, connections

from notifications.events import conf

KEPT_SECONDS = 60.0

P = ParamSpec("P")
R = TypeVar("R")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs on this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@functools.cache
def executor(purpose: str) -> ThreadPoolExecutor:
    """The pool of this process for one purpose."""
    return ThreadPoolExecutor(conf.get("HUB_DATABASE_THREADS"), thread_name_prefix=f"hub-{purpose}")


async def in_database_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` on one of the database threads and return what it returns."""
    return await _in_thread("database", function, *args, **kwargs)


async def in_log_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same on a thread of the durable log, whose publishers may have to wait for Redis, and others not for them."""
    return await _in_thread("log", function, *args, **kwargs)


async def _in_thread(purpose: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    call = functools.partial(_with_connections, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(executor(purpose), call)


def _with_connections(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    close_old_connections()
    try:
        return function(*args, **kwargs)
    finally:
        _keep_connections()


def _keep_connections() -> None:
    """Keep this thread's connections for a while, also where CONN_MAX_AGE closes those of requests at once.

    To open one costs more than the one or two queries that a call makes, and there are only as many as threads.
    """
    now = time.monotonic()
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and connection.close_at is not None and connection.close_at <= now:
            connection.close_at = now + KEPT_SECONDS
    close_old_connections()  # those that had errors


def close_all() -> None:
    """Close the threads and their connections; a later call starts new ones."""
    threads = conf.get("HUB_DATABASE_THREADS")
    for pool in (executor("database"), executor("log")):
        # Together, because otherwise one thread could take the task of another, whose connections stay open.
        together = threading.Barrier(threads)
        for _ in range(threads):
            pool.submit(_close_together, together)
        pool.shutdown(wait=True)
    executor.cache_clear()


def _close_together(together: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        together.wait(timeout=5)
    connections.close_all()
