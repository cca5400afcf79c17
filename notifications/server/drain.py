"""How a server process stops at a signal: nothing is lost on the way, and it ends in bounded time.

1. The process is not ready any more and takes no new sessions, but answers requests as ever.
2. Its sessions are closed within `HUB_DRAIN_SECONDS`, so that their clients do not all come back at once.
3. The server stops listening and finishes the requests that run; then the lifespan ends.

uvicorn alone closes all connections in one go and ends the lifespan last, waits for event streams, which do not end
by themselves, and for peers that have stopped reading, which may never end.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from uvicorn import Server

from notifications.delivery.draining import ANSWER_SECONDS, drain_over
from notifications.events import conf

if TYPE_CHECKING:
    from asyncio import Transport

    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long requests may run after the sessions are closed, where uvicorn was not told with --timeout-graceful-shutdown.
REQUEST_SECONDS = 10
# How long a peer may take nothing of what waits for it; below the five seconds after which closing sessions give up.
STALLED_SECONDS = 4.0
LOOK_SECONDS = 0.25
# For what comes after the requests: the embedded worker, the leases, the threads.
REST_SECONDS = 15.0

Handler = Callable[[int, FrameType | None], Any]


class Drain:
    """Answers the signals to stop, in a process whose server handles them: the first drains, a second ends it at once.

    `begun` are functions that are called when draining begins. Made on the event loop.
    """

    def __init__(self) -> None:
        self.begun: list[Callable[[], object]] = []
        self._loop = asyncio.get_running_loop()
        self._received: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._installed: dict[int, tuple[Handler, Handler]] = {}

    def install(self, switchboard: Switchboard) -> None:
        """Put this before the server's own handlers; outside of the main thread there are none."""
        self._switchboard = switchboard
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if not callable(before):
                continue

            def received(number: int, frame: FrameType | None, before: Handler = before) -> None:
                self._signalled(number, frame, before)

            signal.signal(number, received)
            self._installed[number] = received, before

    def uninstall(self) -> None:
        """Give the server its handlers back."""
        for number, (ours, before) in self._installed.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, before)
        for task in self._tasks:
            task.cancel()

    def _signalled(self, number: int, frame: FrameType | None, before: Handler) -> None:
        # A supervisor of several processes passes on as SIGTERM what a terminal has sent to all of them as SIGINT.
        if number in self._received or (self._received and number == signal.SIGINT):
            os._exit(128 + number)
        first = not self._received
        self._received.add(number)
        if first:
            self._loop.call_soon_threadsafe(self._begin, number, frame, before)

    def _begin(self, number: int, frame: FrameType | None, before: Handler) -> None:
        seconds: float = conf.get("HUB_DRAIN_SECONDS")
        server = getattr(before, "__self__", None)
        if not isinstance(server, Server):
            self._spawn(self._close_sessions(seconds, lambda: before(number, frame)))
        else:
            timeout = server.config.timeout_graceful_shutdown
            if timeout is None:
                timeout = server.config.timeout_graceful_shutdown = REQUEST_SECONDS
            _end_after(seconds + ANSWER_SECONDS + timeout + REST_SECONDS)
            # Its handler would raise the signal again in the end, so that the process would not exit with 0.
            self._spawn(self._close_sessions(seconds, lambda: setattr(server, "should_exit", True)))
            self._spawn(self._abort_stalled(server))
        for begin in self.begun:
            begin()

    def _spawn(self, coroutine: Any) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    async def _close_sessions(self, seconds: float, stop: Callable[[], object]) -> None:
        logger.info("stopping: %d sessions are to be closed", len(self._switchboard.sessions))
        try:
            await drain_over(self._switchboard, seconds)
        except Exception:
            logger.exception("the sessions could not be closed in order")
        stop()

    async def _abort_stalled(self, server: Server) -> None:
        """End connections whose peers take nothing: to close them would wait for what they do not take."""
        # What was unsent when it last became less, or was first seen, and when that was.
        seen: dict[Any, tuple[int, float]] = {}
        while True:
            now, waiting = self._loop.time(), {}
            for connection in list(server.server_state.connections):
                transport: Transport | None = getattr(connection, "transport", None)
                if transport is None or not (unsent := transport.get_write_buffer_size()):
                    continue
                before, since = seen.get(connection, (unsent + 1, now))
                if unsent >= before and now - since > STALLED_SECONDS:
                    logger.info("a connection is aborted whose peer has stopped reading")
                    transport.abort()
                else:
                    waiting[connection] = unsent, now if unsent < before else since
            seen = waiting
            await asyncio.sleep(LOOK_SECONDS)


def _end_after(seconds: float) -> None:
    """End the process after so long, whatever keeps it from it, such as a thread that waits; tells where it was."""
    with suppress(Exception):  # where standard error is no file
        faulthandler.dump_traceback_later(seconds, exit=True)
