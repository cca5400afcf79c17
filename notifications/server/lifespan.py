"""The life of a server process, as ASGI's lifespan protocol tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError

from notifications.delivery.auth import Receive, Scope, Send
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events import conf
from notifications.events.logs.database import relay
from notifications.events.threads import close_all, in_database_thread
from notifications.server.owner import OwnerServer

logger = logging.getLogger(__name__)

RELAY_SECONDS = 2.0
GC_THRESHOLDS = (20_000, 20, 50)

Around = Callable[[OwnerServer | None], AbstractAsyncContextManager[None]]


class Lifespan:
    """Starts what a server process needs before its first request, and stops it after the last.

    `around` may run something of the project's own for as long, such as an embedded worker; it is given the
    server of the Unix socket, if this process has one.
    """

    def __init__(self, around: Around | None = None) -> None:
        self.around = around

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._running())
            except Exception as error:
                logger.exception("the hub could not start")
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        if mistakes := [found for found in run_checks(tags=["hub"]) if found.is_serious()]:
            # Servers that are not started by a management command check nothing themselves.
            raise ImproperlyConfigured("\n".join(str(mistake) for mistake in mistakes))
        loop = asyncio.get_running_loop()
        owner = OwnerServer() if conf.get("HUB_SOCKET") and not conf.get("HUB_REDIS_URL") else None
        async with contextlib.AsyncExitStack() as stack:
            if owner is not None:
                await owner.start()
                stack.push_async_callback(owner.stop)
            stack.callback(close_all)
            switchboard = await current_switchboard()
            stack.push_async_callback(stop_current)
            relaying = loop.create_task(_relay_forever())
            stack.callback(relaying.cancel)
            _drain_on_signal(loop, switchboard)
            if self.around is not None:
                await stack.enter_async_context(self.around(owner))
            # What is loaded by now stays; without this every full collection walks it again. What a session or an
            # event leaves behind has no cycles, so that looking for them after every 700 objects finds nothing.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            yield


async def _relay_forever() -> None:
    """Find events whose process died between its commit and their numbering."""
    while True:
        await asyncio.sleep(RELAY_SECONDS)
        try:
            found = await in_database_thread(relay, older_than=timedelta(seconds=RELAY_SECONDS))
        except DatabaseError as error:
            logger.warning("the relay cannot read the database: %s", error)
        except Exception:
            logger.exception("the relay failed")
        else:
            if found:
                logger.info("the relay published %d events that their process had left behind", found)


def _drain_on_signal(loop: asyncio.AbstractEventLoop, switchboard: Switchboard) -> None:
    """Close the sessions at the first signal to stop.

    uvicorn waits for running responses before it ends the lifespan, and an event stream does not end by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if not callable(before):
            continue

        def stop(received: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(switchboard.drain)
            before(received, frame)

        signal.signal(number, stop)
