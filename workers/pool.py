"""The pool of the embedded worker."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool, apply_target

logger = logging.getLogger(__name__)

STOP_SECONDS = 2.0


class Applied:
    """The future of one task in the pool, as workers expect it."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def finish(self) -> None:
        self._done.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task has ended, for at most `timeout` seconds."""
        self._done.wait(timeout)

    get = wait


class DaemonThreadPool(BasePool):
    """Celery's thread pool with daemon threads: a task that does not end cannot keep the hub from stopping.

    `concurrent.futures`, which Celery's own uses, joins its threads at the exit of the interpreter.
    """

    body_can_be_buffer = True
    signal_safe = False
    #: How long what runs at a stop may take to end, if it is more than STOP_SECONDS.
    patience = 0.0

    def on_start(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"hub-task-{number}", daemon=True) for number in range(self.limit)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def on_apply(  # type: ignore[override]  # the stub says that it returns nothing
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Applied:
        applied = Applied()

        def run() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except BaseException:
                # What a task raises is caught before; this is Celery's own trouble, and the thread is needed.
                logger.exception("a task could not be brought to its end")
            finally:
                applied.finish()

        self._tasks.put(run)
        return applied

    def on_stop(self) -> None:
        """Start nothing more, and give what runs its time to end."""
        while not self._tasks.empty():
            self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        seconds = max(STOP_SECONDS, self.patience)
        logger.info("the worker begins no further task; those in hand have %.1f s to end", seconds)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "threads": len(self._threads)}  # type: ignore[misc]  # the stub lacks it
