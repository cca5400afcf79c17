"""Starting tasks, what became of those whose worker died, and what the page opens with."""

from __future__ import annotations

from datetime import timedelta

import pytest
from celery.contrib.testing.worker import start_worker
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import Settings

from notifications.events.topics import resolve
from notifications.progress import selectors, services
from notifications.progress.models import TaskRun
from notifications.progress.names import PRUNE_EVENTS
from notifications.progress.run import FAILED, PROGRESS, RETRIED, STARTED, SUCCEEDED, Run
from notifications.testing.plugin import PublishedEvents
from tests.servers import eventually
from workers import app

pytestmark = pytest.mark.django_db(transaction=True)


def stored(task_id: str, state: str, *, silent: timedelta = timedelta(0)) -> Run:
    """A run that was stored a while ago."""
    run = Run(task_id, "tests.task")
    run.change(state)
    services.store(run)
    then = timezone.now() - silent
    TaskRun.objects.filter(pk=task_id).update(
        updated_at=then, started_at=then, finished_at=then if run.finished_at else None
    )
    return run


def test_a_started_task_is_there_before_a_worker_took_it_and_knows_who_started_it() -> None:
    user = User.objects.create_user("ana", is_staff=True)

    run = services.start_task(PRUNE_EVENTS, user=user)

    row = TaskRun.objects.get(pk=run.id)
    assert (row.name, row.state, row.note, row.started_by) == (PRUNE_EVENTS, "queued", "waiting for a worker", user)
    with start_worker(app, pool="solo", perform_ping_check=False):
        eventually(lambda: TaskRun.objects.get(pk=run.id).state == "succeeded")
    row.refresh_from_db()
    assert row.started_at == run.started_at
    assert row.started_by == user
    assert row.note != "waiting for a worker"


def test_a_task_that_cannot_be_sent_leaves_no_run(settings: Settings) -> None:
    settings.HUB_SOCKET = "/nowhere/hub.sock"
    user = User.objects.create_user("ana", is_staff=True)

    with pytest.raises(services.TasksUnavailable, match=r"manage\.py runhub"):
        services.start_task(PRUNE_EVENTS, user=user)

    assert not TaskRun.objects.exists()


def test_runs_of_which_nothing_was_heard_are_failed(settings: Settings, published: PublishedEvents) -> None:
    settings.HUB_TASK_LOST_SECONDS = 300
    long, short = timedelta(seconds=301), timedelta(seconds=200)
    for task_id, state, silent in (
        ("lost", PROGRESS, long),
        ("never-taken", STARTED, long),
        ("quiet", PROGRESS, short),
        ("will-be-retried", RETRIED, long),
        ("retry-lost", RETRIED, timedelta(days=2)),
        ("succeeded", SUCCEEDED, long),
        ("failed", FAILED, long),
    ):
        stored(task_id, state, silent=silent)

    assert services.fail_lost_runs() == 3

    assert set(TaskRun.objects.filter(error__contains="nothing was heard").values_list("pk", flat=True)) == {
        "lost",
        "never-taken",
        "retry-lost",
    }
    assert {(event.type, event.key) for event in published.on("tasks:all")} == {
        ("task.failed", "lost"),
        ("task.failed", "never-taken"),
        ("task.failed", "retry-lost"),
    }
    assert services.fail_lost_runs() == 0


def test_a_run_that_was_only_silent_corrects_what_was_said_of_it(settings: Settings) -> None:
    run = stored("silent", PROGRESS, silent=timedelta(days=1))
    services.fail_lost_runs()

    run.change(PROGRESS, done=5, total=10)
    services.store_progress(run)

    row = TaskRun.objects.get()
    assert (row.state, row.done, row.finished_at) == ("progress", 5, None)


def test_old_runs_are_deleted_and_running_ones_kept() -> None:
    stored("old", SUCCEEDED, silent=timedelta(days=31))
    stored("recent", SUCCEEDED, silent=timedelta(days=29))
    stored("running", PROGRESS, silent=timedelta(days=31))

    assert services.delete_old_runs() == 1

    assert set(TaskRun.objects.values_list("pk", flat=True)) == {"recent", "running"}


def test_the_page_opens_with_running_tasks_first_and_the_position_of_its_topic() -> None:
    stored("ended", SUCCEEDED, silent=timedelta(minutes=1))
    stored("running", PROGRESS, silent=timedelta(minutes=2))
    services.announce(Run("other", "tests.task"))

    state = selectors.page_state()

    assert [task["id"] for task in state["tasks"]] == ["running", "ended"]
    assert state["cursor"]["offset"] == 1
    assert state["cursor"]["epoch"]


def test_the_page_opens_with_what_was_told_after_the_row_was_written() -> None:
    run = stored("running", PROGRESS, silent=timedelta(minutes=1))
    run.change(PROGRESS, done=7, total=10)
    services.announce(run)

    (task,) = selectors.page_state()["tasks"]

    assert (task["done"], task["updated_at"]) == (7, run.updated_at.isoformat())


def test_the_page_opens_without_a_position_when_the_log_cannot_be_reached(settings: Settings) -> None:
    stored("ended", SUCCEEDED)
    settings.HUB_SOCKET = "/nowhere/hub.sock"

    state = selectors.page_state()

    assert state["cursor"] is None
    assert [task["id"] for task in state["tasks"]] == ["ended"]


def test_only_staff_may_follow_tasks() -> None:
    staff, somebody = User(username="ana", is_staff=True), User(username="bob")

    for topic in ("tasks:all", "tasks:3f1e"):
        assert resolve(topic).allows("subscribe", staff)
        assert not resolve(topic).allows("subscribe", somebody)
        assert not resolve(topic).allows("publish", staff)
