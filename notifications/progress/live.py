"""LiveTask: the base class of Celery tasks that show their progress.

What is told of a run never decides about it: a log or a database that cannot be reached is logged, and the task
goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, WorkerLostError
from django.db import connections
from kombu.exceptions import OperationalError

from notifications.events.exceptions import HubError
from notifications.progress.run import FAILED, MAX_ADDRESS, PROGRESS, RETRIED, STARTED, SUCCEEDED, Run

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

TELL_SECONDS = 0.1
STORE_SECONDS = 1.0


class LiveTask(DjangoTask[..., Any]):
    """A Celery task whose runs are shown live: `@app.task(base=LiveTask, bind=True)`.

    Starting, succeeding, failing and retrying are published to `tasks:<id>` and `tasks:all` without any doing. A
    task that returns a mapping with the key `result_url` has a link beside its run.

    A run that has succeeded is not run again: a broker may deliver a task twice, when its worker died before it could
    acknowledge it or when it was sent again because it seemed lost.
    """

    abstract = True

    def progress(self, done: int, total: int | None = None, note: str = "") -> None:
        """Tell that `done` of `total` is done (any unit; None: as said before, or not known).

        May be called as often as wanted: about ten events a second are published, and the last one always. Does
        nothing where the task was called as a plain function.
        """
        watched = _running.get(self.request.id or "")
        if watched is not None:
            with _harmless():
                watched.progress(done, total, note)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's, but a task whose next attempt cannot be sent for want of the broker is left to it, not dropped."""
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejected:
            reason = rejected.reason  # type: ignore[attr-defined]  # the stub lacks it
            raise Reject(reason, requeue=isinstance(reason, OperationalError)) from rejected

    # What the worker calls.

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        super().before_start(task_id, args, kwargs)
        succeeded = False
        with _harmless():
            succeeded = _services().has_succeeded(task_id)
        if succeeded:
            logger.info("%s %s has succeeded already, and is not run again", self.name, task_id)
            raise Ignore
        with _harmless():
            watched = _running[task_id] = WatchedRun(Run(task_id, self.name), attempt=self.request.retries)
            watched.start()

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        super().on_success(retval, task_id, args, kwargs)
        address = str(retval.get("result_url") or "") if isinstance(retval, Mapping) else ""
        self._ended(task_id, SUCCEEDED, result_url=address if len(address) <= MAX_ADDRESS else "")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        super().on_failure(exc, task_id, args, kwargs, einfo)
        self._ended(task_id, FAILED, error=_in_words(exc))

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        super().on_retry(exc, task_id, args, kwargs, einfo)
        if isinstance(exc, WorkerLostError):
            _tell_for_killed(task_id, RETRIED, exc)
        else:
            self._ended(task_id, RETRIED, error=_in_words(exc))

    def _ended(self, task_id: str, state: str, **changes: Any) -> None:
        with _harmless():
            watched = _take(task_id, self.request.retries)
            if watched is None and state != RETRIED:
                watched = WatchedRun(Run(task_id, self.name), attempt=self.request.retries)
            if watched is not None:
                watched.end(state, **changes)


class WatchedRun:
    """A run that this process works on. Bounds how much is told of it, and keeps it in order."""

    def __init__(self, run: Run, *, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        # Held while publishing: the timer's thread and the task's must not overtake each other.
        self._lock = threading.Lock()
        self._told_at = self._stored_at = float("-inf")
        self._untold = False
        self._ended = False
        self._written_at = run.updated_at
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Store and tell that the run started."""
        self.run.change(STARTED)
        self._written_at = self.run.updated_at
        _services().store(self.run)
        _services().announce(self.run)

    def progress(self, done: int, total: int | None, note: str) -> None:
        """Store and tell progress, now or, if something was told just before, a moment later."""
        now = time.monotonic()
        with self._lock:
            self.run.change(PROGRESS, done=done, total=self.run.total if total is None else total, note=note, error="")
            self._untold = True
            due = self._told_at + TELL_SECONDS - now
            if due > 0 and self._timer is None:
                self._timer = threading.Timer(due, self._tell_late)
                self._timer.daemon = True
                self._timer.start()
        try:
            # Rows before events: who reads between the two gets the event again, instead of never.
            if now - self._stored_at >= STORE_SECONDS:
                self._stored_at = now
                self._written_at = self.run.updated_at
                _services().store_progress(self.run)
        finally:  # a database that did not take it in time is no reason to tell nobody
            if due <= 0:
                with self._lock:
                    self._tell()

    def _tell_late(self) -> None:
        with self._lock, _harmless():
            self._tell()

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._untold and not self._ended:
            self._untold = False
            self._told_at = time.monotonic()
            _services().announce(self.run)

    def end(self, state: str, **changes: Any) -> None:
        """Tell what was not told yet, then store and tell the end."""
        with self._lock:
            with _harmless():
                self._tell()
            self._ended = True
            self.run.change(state, **changes)
        if state == RETRIED:
            if not _services().store_retry(self.run, since=self._written_at):
                return  # the next attempt is on its way, and tells for itself
        else:
            with _harmless():
                _services().store(self.run)
        _services().announce(self.run)


_running: dict[str, WatchedRun] = {}


def _take(task_id: str, attempt: int) -> WatchedRun | None:
    """Watch an attempt no longer. The next one may run in this process already, on another thread: it is left."""
    watched = _running.get(task_id)
    if watched is None or watched.attempt != attempt:
        return None
    return _running.pop(task_id, None)


def fail_running(reason: str) -> int:
    """Show what this process works on as failed, because the process stops; returns how many."""
    runs, failed = list(_running.items()), 0
    for task_id, watched in runs:
        if _running.pop(task_id, None) is not None:
            with _harmless():
                watched.end(FAILED, error=reason)
            failed += 1
    return failed


@signals.task_postrun.connect(dispatch_uid="hub-progress-postrun")
def _ended_otherwise(task_id: str, task: Any, state: str | None = None, **_: Any) -> None:
    """End a run that ended in a way for which Celery calls no handler: ignored, rejected, or thrown out of."""
    watched = _take(task_id, task.request.retries or 0)
    if watched is not None:
        with _harmless():
            if state == "IGNORED":
                watched.end(SUCCEEDED)
            elif state == "REJECTED":
                watched.end(RETRIED, error="rejected; the broker decides whether it runs again")
            else:
                watched.end(FAILED, error="ended without a result")


@signals.task_failure.connect(dispatch_uid="hub-progress-lost")
def _lost(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """End a run that will not be tried again after its process was killed: Celery calls no handler of the task."""
    if isinstance(sender, LiveTask) and isinstance(exception, WorkerLostError):
        _tell_for_killed(task_id, FAILED, exception)


def _tell_for_killed(task_id: str, state: str, error: BaseException) -> None:
    """Tell of a run in the worker's main process, which lives on after one of its pool was killed."""
    with _harmless():
        # This process has no tasks of its own, around which Celery would close what has grown old.
        connections.close_all()
        try:
            _services().tell_for_killed(task_id, state=state, error=_in_words(error))
        finally:
            connections.close_all()  # or the next process of the pool inherits it


@contextmanager
def _harmless() -> Iterator[None]:
    """Log every trouble of telling, but let the task's own time limit through."""
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except HubError as error:
        logger.warning("progress was not published: %s", error)
    except Exception:
        logger.exception("progress was not told")


def _in_words(error: BaseException | None) -> str:
    if error is None:
        return ""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _services() -> ModuleType:
    """The services, whose models can be imported only when the apps are loaded: tasks are named before that."""
    from notifications.progress import services

    return services
