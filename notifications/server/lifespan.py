"""The life of a server process, as ASGI's lifespan protocol tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from notifications.delivery.auth import Receive, Scope, Send
from notifications.delivery.switchboard import current_switchboard, stop_current
from notifications.events import conf
from notifications.events.relay import relay_forever
from notifications.events.threads import close_all
from notifications.server.drain import Drain
from notifications.server.owner import OwnerServer

logger = logging.getLogger(__name__)

GC_THRESHOLDS = (20_000, 20, 50)

Around = Callable[[OwnerServer | None], AbstractAsyncContextManager[Callable[[], object] | None]]


class Lifespan:
    """Starts what a server process needs before its first request, and stops it after the last.

    `around` may run something of the project's own for as long, such as an embedded worker; it is given the
    server of the Unix socket, if this process has one, and may give a function that is called, on the loop, when
    the process is told to stop.
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
            drain = Drain()
            stack.callback(drain.uninstall)
            if owner is not None:
                await owner.start()
                stack.push_async_callback(owner.stop)
            stack.callback(close_all)
            switchboard = await current_switchboard()
            stack.push_async_callback(stop_current)
            relaying = loop.create_task(relay_forever())
            stack.callback(relaying.cancel)
            drain.install(switchboard)
            if self.around is not None and (begun := await stack.enter_async_context(self.around(owner))) is not None:
                drain.begun.append(begun)
            # What is loaded by now stays; without this every full collection walks it again. What a session or an
            # event leaves behind has no cycles, so that looking for them after every 700 objects finds nothing.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            yield
