"""Writes runs of tasks, tells of them, and starts tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from celery.utils import uuid
from django.db import DatabaseError, transaction
from django.db.models import Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from notifications.events import Publication, conf, publish_many
from notifications.events.exceptions import HubError
from notifications.progress.models import TaskRun
from notifications.progress.run import FAILED, PROGRESS, QUEUED, RETRIED, STARTED, SUCCEEDED, Run

logger = logging.getLogger(__name__)

ALL_TASKS = "tasks:all"
# A queue may be long and a retry far in the future; no sane one of either takes longer than this.
LONGEST_RETRY = timedelta(days=1)
KEEP_RUNS = timedelta(days=30)


class TasksUnavailable(Exception):
    """The task was not started, because no broker or no worker can take it."""


def topic_of(task_id: str) -> str:
    """The topic of one task's runs."""
    return f"tasks:{task_id}"


def announce(run: Run) -> None:
    """Publish the run's state, without waiting for the commit of the task's transaction. Raises HubError."""
    data = run.as_data()
    publish_many(
        [Publication(topic, f"task.{run.state}", data, key=run.id) for topic in (topic_of(run.id), ALL_TASKS)],
        immediately=True,
    )


def store(run: Run) -> None:
    """Write the run's state to its row, and take over when the run first started."""
    state = {
        "name": run.name,
        "state": run.state,
        "done": run.done,
        "total": run.total,
        "note": run.note,
        "error": run.error,
        "result_url": run.result_url,
        "updated_at": run.updated_at,
        "finished_at": run.finished_at,
    }
    # A savepoint where the task has a transaction open: a failure here must not break that.
    with _failures_logged(), transaction.atomic():
        row, _ = TaskRun.objects.update_or_create(
            pk=run.id, defaults=state, create_defaults={**state, "started_at": run.started_at}
        )
        run.started_at = row.started_at


def store_retry(run: Run, *, since: datetime) -> bool:
    """Write that the run will be tried again, if its row still says what this attempt wrote at `since`.

    Celery sends the next attempt before it tells of the retry, so that one may have begun, and ended, already.
    """
    stored = 0
    with _failures_logged(), transaction.atomic():
        own = TaskRun.objects.filter(pk=run.id, finished_at=None, updated_at__lte=since)
        stored = own.update(state=run.state, error=run.error, note=run.note, updated_at=run.updated_at)
    return stored > 0


def store_progress(run: Run) -> None:
    """Write how far the run got, unless the task has a transaction open: it would hold the row until its end."""
    if transaction.get_connection().in_atomic_block:
        return
    with _failures_logged():
        TaskRun.objects.filter(pk=run.id).update(
            state=run.state,
            done=run.done,
            total=run.total,
            note=run.note,
            error=run.error,
            updated_at=run.updated_at,
            finished_at=None,
        )


def start_task(task: str, *, user: Any, kwargs: Mapping[str, Any] | None = None) -> Run:
    """Send a task by its name for `user`; the returned run has its id.

    Raises TasksUnavailable when no broker or no worker can take it.
    """
    run = Run(uuid(), task, state=QUEUED, note="waiting for a worker")
    store(run)
    TaskRun.objects.filter(pk=run.id).update(started_by=user, kwargs=dict(kwargs or {}))
    try:
        current_app.send_task(task, kwargs=dict(kwargs or {}), task_id=run.id)
    except OperationalError as error:
        TaskRun.objects.filter(pk=run.id).delete()
        raise TasksUnavailable(str(error)) from error
    return run


def has_succeeded(task_id: str) -> bool:
    """Whether the row of a run says that it came to a good end."""
    return TaskRun.objects.filter(pk=task_id, state=SUCCEEDED).exists()


def send_again() -> int:
    """Send the tasks that wait for a worker once more; returns how many.

    For the process whose memory is the broker, when it has started: what waited in it before is lost with it. Raises
    kombu.exceptions.OperationalError.
    """
    waiting = TaskRun.objects.filter(state__in=(QUEUED, RETRIED), finished_at=None, kwargs__isnull=False)
    rows = list(waiting.order_by("started_at"))
    for row in rows:
        current_app.send_task(row.name, kwargs=row.kwargs, task_id=row.pk)
    return len(rows)


def send_overdue() -> int:
    """Send tasks once more that no worker has begun for `HUB_TASK_LOST_SECONDS`; returns how many.

    The broker may have lost them, as a Redis that was flushed has. One that still has them delivers them twice, and
    the second time nothing is done. Raises kombu.exceptions.OperationalError.
    """
    now, silence = timezone.now(), timedelta(seconds=conf.get("HUB_TASK_LOST_SECONDS"))
    overdue = TaskRun.objects.filter(state=QUEUED, kwargs__isnull=False, updated_at__lt=now - silence)
    sent = 0
    for row in overdue.order_by("started_at"):
        # Only who moves the time sends: two workers may look at once, and the task may have begun meanwhile.
        if TaskRun.objects.filter(pk=row.pk, state=QUEUED, updated_at=row.updated_at).update(updated_at=now):
            current_app.send_task(row.name, kwargs=row.kwargs, task_id=row.pk)
            sent += 1
    return sent


def fail_lost_runs() -> int:
    """Show runs as failed of which nothing was heard for `HUB_TASK_LOST_SECONDS`; returns how many.

    A worker that was killed cannot tell. One that was only silent corrects this with its next word.
    """
    now, silence = timezone.now(), timedelta(seconds=conf.get("HUB_TASK_LOST_SECONDS"))
    lost = TaskRun.objects.filter(finished_at=None).filter(
        Q(state__in=(STARTED, PROGRESS), updated_at__lt=now - silence)
        | Q(state__in=(QUEUED, RETRIED), updated_at__lt=now - max(silence, LONGEST_RETRY))
    )
    failed = 0
    for row in lost:
        try:
            failed += _tell_for(row, FAILED, f"nothing was heard of it since {row.updated_at:%Y-%m-%d %H:%M:%S} UTC")
        except HubError as error:
            failed += 1
            logger.warning("the end of %s was not published: %s", row, error)
    return failed


def tell_for_killed(task_id: str, *, state: str, error: str) -> None:
    """Store and tell how the attempt at a run ended whose process was killed. Raises HubError."""
    row = TaskRun.objects.filter(pk=task_id, finished_at=None).first()
    if row is not None:
        _tell_for(row, state, error)


def _tell_for(row: TaskRun, state: str, error: str) -> bool:
    """Store and tell how a run goes on that cannot tell itself, unless somebody has told of it since; True if so."""
    run = run_of(row)
    run.change(state, error=error)
    silent = TaskRun.objects.filter(pk=row.pk, updated_at=row.updated_at, finished_at=None)
    if not silent.update(state=run.state, error=run.error, updated_at=run.updated_at, finished_at=run.finished_at):
        return False
    announce(run)
    return True


def delete_old_runs() -> int:
    """Delete the rows of runs that ended long ago; returns how many."""
    deleted, _ = TaskRun.objects.filter(finished_at__lt=timezone.now() - KEEP_RUNS).delete()
    return deleted


def run_of(row: TaskRun) -> Run:
    """The run that a row describes."""
    return Run(
        id=row.pk,
        name=row.name,
        state=row.state,
        done=row.done,
        total=row.total,
        note=row.note,
        error=row.error,
        result_url=row.result_url,
        started_at=row.started_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
    )


@contextmanager
def _failures_logged() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        logger.warning("the run of a task was not stored: %s", error)
