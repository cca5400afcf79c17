"""The Celery worker and beat that run inside the hub's process, in threads."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from celery.beat import Service
from celery.worker import WorkController, state
from django.db import DatabaseError, connections
from kombu.exceptions import OperationalError

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.progress.live import fail_running
from notifications.progress.services import send_again
from notifications.server.owner import OwnerServer
from workers import app, handover
from workers.beat import LeasedScheduler
from workers.pool import DaemonThreadPool
from workers.schedule import SAMPLE_SYSTEM

logger = logging.getLogger(__name__)

# Set by `runhub`, so that a server that is started otherwise leaves the tasks to workers of their own.
ENABLED = "HUB_EMBEDDED_WORKER"

THREADS = 4
READY_SECONDS = 10.0
STOP_SECONDS = 4.0


@asynccontextmanager
async def embedded_worker(owner: OwnerServer | None) -> AsyncIterator[Callable[[], object] | None]:
    """Run a worker and a beat for as long as the server runs, in a process that `runhub` started with them.

    What it gives makes them begin to stop, so that the tasks in hand have as long to end as the sessions.
    """
    if os.environ.get(ENABLED) != "1":
        yield None
        return
    worker = EmbeddedWorker()
    await asyncio.to_thread(worker.start)
    if owner is not None:
        owner.operations["task"] = handover.take
    stopping: list[asyncio.Task[None]] = []

    def stop() -> None:
        if owner is not None:
            owner.operations["task"] = _refuse
        stopping.append(asyncio.create_task(asyncio.to_thread(worker.begin_stop)))

    try:
        yield stop
    finally:
        if owner is not None:
            del owner.operations["task"]
        await asyncio.to_thread(worker.stop)


def _refuse(body: str) -> None:
    raise LogUnavailable("the hub is stopping, and takes no tasks any more")


class EmbeddedWorker:
    """A Celery worker with a pool of threads, and a beat. Celery allows one worker per process."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._controller: WorkController | None = None
        self._stopping = threading.Lock()
        self._deadline: float | None = None
        self._worker_thread: threading.Thread | None = None
        self._beat_thread: threading.Thread | None = None
        self._beat: Service | None = None

    def start(self) -> None:
        """Start both, and wait until the worker takes tasks.

        A broker that does not answer is waited for in the background. Raises RuntimeError when the worker ends
        at once.
        """
        state.should_stop = state.should_terminate = None
        # Nothing inspects a worker inside the hub, and its mailbox would be one more queue to poll.
        app.conf.worker_enable_remote_control = False
        handover.worker_started()
        self._worker_thread = self._thread(self._work, "hub-worker")
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready.wait(0.05):
            if not self._worker_thread.is_alive():
                handover.worker_stopped()
                raise RuntimeError("the embedded worker did not start; its log says why")
            if time.monotonic() > deadline:
                logger.warning("the embedded worker is not ready yet: is the broker there?")
                break
        if handover.is_in_memory(app):
            self._send_again()
        self._beat = Service(app, scheduler_cls=LeasedScheduler)
        self._beat_thread = self._thread(self._beat.start, "hub-beat")

    def _send_again(self) -> None:
        """Send the tasks that were waiting in the memory of the process that was here before."""
        try:
            if found := send_again():
                logger.info("%d tasks were sent again that were waiting when the hub ended", found)
        except (DatabaseError, OperationalError) as error:
            logger.warning("tasks that were waiting when the hub ended are not sent again: %s", error)
        finally:
            connections.close_all()

    def _thread(self, target: Any, name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        try:
            # Neither signal handlers nor logging nor an exit of the process, as Celery's command has them.
            self._controller = WorkController(
                app=app,
                hostname=f"hub-{os.getpid()}@{socket.gethostname()}",
                pool=DaemonThreadPool,
                concurrency=THREADS,
                loglevel="WARNING",
                ready_callback=lambda consumer: self._ready.set(),
                without_heartbeat=True,
                without_mingle=True,
                without_gossip=True,
            )
            self._controller.start()
        except Exception:
            logger.exception("the embedded worker ended")
        finally:
            connections.close_all()

    def begin_stop(self) -> None:
        """Take no further task; those in hand may go on until the time of `HUB_DRAIN_SECONDS` is over."""
        with self._stopping:
            if self._deadline is not None:
                return
            patience: float = conf.get("HUB_DRAIN_SECONDS")
            self._deadline = time.monotonic() + patience + STOP_SECONDS
            if self._beat is not None:
                self._beat.stop()
            pool: Any = None if self._controller is None else self._controller.pool
            if pool is not None:
                pool.patience = patience
            # Taken up by the worker's own thread: its loop and its consumer are not made to be stopped from another.
            state.should_stop = os.EX_OK  # type: ignore[assignment]
            if handover.is_in_memory(app):
                # An idle loop looks up when a task arrives or two seconds have passed, and stops when it did so twice.
                for _ in range(2):
                    app.send_task(SAMPLE_SYSTEM)
            # From here on who sends a task is told that nobody takes it.
            handover.worker_stopped()

    def stop(self) -> None:
        """Stop both, within `HUB_DRAIN_SECONDS` and STOP_SECONDS since that began.

        Tasks that have not ended by then are shown as failed.
        """
        self.begin_stop()
        assert self._deadline is not None
        for thread in (self._worker_thread, self._beat_thread):
            if thread is not None:
                thread.join(max(0.0, self._deadline - time.monotonic()))
        if unfinished := fail_running("the hub was stopped while it ran"):
            logger.warning("%d tasks had not ended when the hub was stopped", unfinished)
        connections.close_all()
