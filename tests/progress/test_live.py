"""LiveTask: what is told and stored of a run, in which order, and that telling never decides about the task."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from django.db import transaction
from pytest_django import Settings

from notifications.progress import LiveTask, live
from notifications.progress.models import TaskRun
from notifications.progress.run import Run
from notifications.testing.plugin import PublishedEvents
from tests.servers import eventually
from workers import app

pytestmark = pytest.mark.django_db(transaction=True)


@app.task(base=LiveTask, bind=True, name="tests.count")
def count(self: LiveTask, numbers: int, pause: float = 0.0) -> dict[str, Any]:
    for number in range(1, numbers + 1):
        self.progress(number, total=numbers, note=f"number {number}")
        time.sleep(pause)
    return {"result_url": "/the/result"}


@app.task(base=LiveTask, bind=True, name="tests.fail")
def fail(self: LiveTask) -> None:
    self.progress(1)
    raise ValueError("no luck")


@app.task(base=LiveTask, bind=True, name="tests.fail_once", autoretry_for=(KeyError,), max_retries=3)
def fail_once(self: LiveTask) -> str:
    if self.request.retries == 0:
        raise KeyError("not yet")
    return "done"


@app.task(base=LiveTask, bind=True, name="tests.ignored")
def ignored(self: LiveTask) -> None:
    raise Ignore


@app.task(base=LiveTask, bind=True, name="tests.in_transaction")
def in_transaction(self: LiveTask) -> int:
    with transaction.atomic():
        self.progress(1, total=2)
        told = len(_started())
    return told


def _started() -> list[Any]:
    return list(TaskRun.objects.filter(state="progress"))


def types(published: PublishedEvents, topic: str = "tasks:all") -> list[str]:
    return [event.type for event in published.on(topic)]


def test_a_run_is_told_from_its_start_to_its_end(published: PublishedEvents) -> None:
    count.apply(args=(2,), task_id="run-1")

    assert types(published) == ["task.started", "task.progress", "task.progress", "task.succeeded"]
    assert published.on("tasks:run-1") == [
        type(event)(topic="tasks:run-1", type=event.type, data=event.data, key="run-1")
        for event in published.on("tasks:all")
    ]
    last = published.on("tasks:all")[-1]
    assert last.key == "run-1"
    assert last.data["finished_at"] == last.data["updated_at"]
    assert {name: last.data[name] for name in ("id", "name", "state", "done", "total", "note", "error")} == {
        "id": "run-1",
        "name": "tests.count",
        "state": "succeeded",
        "done": 2,
        "total": 2,
        "note": "number 2",
        "error": "",
    }
    assert last.data["result_url"] == "/the/result"


def test_the_row_is_what_was_told_last(published: PublishedEvents) -> None:
    count.apply(args=(3,), task_id="run-1")

    row = TaskRun.objects.get()
    data = published.on("tasks:all")[-1].data
    assert (row.pk, row.state, row.done, row.total, row.note) == ("run-1", "succeeded", 3, 3, "number 3")
    assert row.started_at.isoformat() == data["started_at"]
    assert row.updated_at.isoformat() == row.finished_at.isoformat() == data["finished_at"]  # type: ignore[union-attr]


def test_quick_progress_is_told_about_ten_times_a_second_and_the_last_always(published: PublishedEvents) -> None:
    begun = time.monotonic()

    count.apply(args=(300, 0.001))

    told = [event.data["done"] for event in published.on("tasks:all") if event.type == "task.progress"]
    assert told == sorted(set(told))
    assert told[-1] == 300
    assert len(told) <= (time.monotonic() - begun) / live.TELL_SECONDS + 2


def test_progress_before_a_long_step_is_told_without_another_word(published: PublishedEvents) -> None:
    watched = live.WatchedRun(Run("run-1", "tests.count"), attempt=0)
    watched.progress(1, 10, "")
    watched.progress(2, 10, "the long step")

    eventually(lambda: len(published.on("tasks:all")) == 2)

    assert [event.data["done"] for event in published.on("tasks:all")] == [1, 2]


def test_a_failed_run_says_why(published: PublishedEvents) -> None:
    fail.apply(task_id="run-1")

    assert types(published) == ["task.started", "task.progress", "task.failed"]
    assert published.on("tasks:all")[-1].data["error"] == "ValueError: no luck"
    row = TaskRun.objects.get()
    assert (row.state, row.error, row.done) == ("failed", "ValueError: no luck", 1)


def test_a_retried_run_starts_again_and_keeps_its_first_start(published: PublishedEvents) -> None:
    fail_once.apply(task_id="run-1")

    events = published.on("tasks:all")
    assert [event.type for event in events] == ["task.started", "task.retried", "task.started", "task.succeeded"]
    assert events[1].data["error"] == "KeyError: 'not yet'"
    assert events[3].data["error"] == ""
    assert {event.data["started_at"] for event in events} == {events[0].data["started_at"]}
    assert TaskRun.objects.get().state == "succeeded"


def test_an_ignored_run_does_not_stay_open(published: PublishedEvents) -> None:
    ignored.apply(task_id="run-1")

    assert types(published) == ["task.started", "task.succeeded"]
    assert TaskRun.objects.get().finished_at is not None


def test_a_worker_tells_as_an_eager_call_does(published: PublishedEvents) -> None:
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False):
        result = count.delay(2)
        eventually(lambda: "task.succeeded" in types(published))

    assert types(published, f"tasks:{result.id}") == [
        "task.started",
        "task.progress",
        "task.progress",
        "task.succeeded",
    ]


def test_called_as_a_plain_function_nothing_is_told(published: PublishedEvents) -> None:
    assert count(2) == {"result_url": "/the/result"}
    assert published == []
    assert not TaskRun.objects.exists()


def test_progress_inside_a_transaction_is_told_at_once_and_holds_no_row(published: PublishedEvents) -> None:
    result = in_transaction.apply()

    assert result.get() == 0
    assert types(published) == ["task.started", "task.progress", "task.succeeded"]


def test_a_task_goes_on_when_nothing_can_be_told(settings: Settings, published: PublishedEvents) -> None:
    settings.HUB_SOCKET = "/nowhere/hub.sock"

    result = count.apply(args=(2,), task_id="run-1")

    assert result.get() == {"result_url": "/the/result"}
    assert published == []
    assert TaskRun.objects.get().state == "succeeded"


def test_a_task_goes_on_when_its_row_cannot_be_written(published: PublishedEvents) -> None:
    result = count.apply(args=(1,), task_id="x" * 256 + "\0")

    assert result.get() == {"result_url": "/the/result"}


def test_a_time_limit_is_not_taken_for_trouble_of_telling() -> None:
    with pytest.raises(SoftTimeLimitExceeded), live._harmless():
        raise SoftTimeLimitExceeded


def test_what_runs_when_the_process_stops_is_shown_as_failed(published: PublishedEvents) -> None:
    running = live._running["run-1"] = live.WatchedRun(Run("run-1", "tests.count"), attempt=0)
    running.start()
    running.progress(1, 2, "")

    assert live.fail_running("the hub was stopped while it ran") == 1

    assert types(published) == ["task.started", "task.progress", "task.failed"]
    assert TaskRun.objects.get().error == "the hub was stopped while it ran"
    assert live.fail_running("again") == 0


@pytest.mark.django_db(transaction=True)
def test_a_retry_that_is_told_late_leaves_the_attempt_after_it(published: PublishedEvents) -> None:
    first = live.WatchedRun(Run("run-1", "tests.count"), attempt=0)
    first.start()
    second = live.WatchedRun(Run("run-1", "tests.count"), attempt=1)
    second.start()
    second.end("succeeded")

    first.end("retried", error="Timeout")

    assert TaskRun.objects.get(pk="run-1").state == "succeeded"
    assert [event.type for event in published.on("tasks:all")] == ["task.started", "task.started", "task.succeeded"]


@pytest.mark.django_db(transaction=True)
def test_an_error_that_quotes_a_broken_name_is_told(published: PublishedEvents) -> None:
    watched = live.WatchedRun(Run("run-1", "tests.count"), attempt=0)
    watched.start()

    watched.end("failed", error="OSError: caf\udce9\0")

    assert TaskRun.objects.get(pk="run-1").error == "OSError: caf?"
    assert published[-1].data["error"] == "OSError: caf?"
