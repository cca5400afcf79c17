"""The hub's own tasks: what fails in passing is tried again, what was lost is sent again, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import Reject
from django.utils import timezone
from kombu.exceptions import OperationalError
from pytest_django import Settings

from notifications.events import publish
from notifications.events.exceptions import LogUnavailable
from notifications.progress import LiveTask, exports, services
from notifications.progress.models import TaskRun
from notifications.progress.names import EXPORT_HISTORY
from tests.servers import free_port
from workers import app
from workers.tasks import export_history, send_overdue_tasks

pytestmark = pytest.mark.django_db(transaction=True)


class Unreachable(Celery):
    """A Celery application whose broker is away."""

    def send_task(self, *args: Any, **options: Any) -> Any:
        raise OperationalError("the broker is away")


@pytest.fixture(autouse=True)
def _alone(settings: Settings, tmp_path: Path) -> None:
    """A hub that is this process alone."""
    settings.HUB_SOCKET = ""
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture(autouse=True)
def _empty_broker() -> Iterator[None]:
    yield
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
            queue(connection.default_channel).purge()


def queued() -> list[tuple[str, str, dict[str, Any]]]:
    """The name, the id and the arguments of each task in the broker, which is empty then."""
    found = []
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery")
        while queue.qsize():
            message = queue.get(timeout=5)
            message.ack()
            found.append((message.headers["task"], message.headers["id"], message.payload[1]))
    return found


def age(run_id: str, seconds: int) -> None:
    TaskRun.objects.filter(pk=run_id).update(updated_at=timezone.now() - timedelta(seconds=seconds))


def test_an_export_that_cannot_reach_the_log_is_tried_again(settings: Settings, redis_url: str) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"
    attempts = []

    def redis_comes_back(reason: Any, **_: Any) -> None:
        attempts.append(type(reason.exc))
        if len(attempts) == 2:
            settings.HUB_REDIS_URL = redis_url

    signals.task_retry.connect(redis_comes_back, sender=export_history)
    try:
        result = export_history.apply(kwargs={"topic": "open:export"}, task_id="exported-after-trouble")
    finally:
        signals.task_retry.disconnect(redis_comes_back, sender=export_history)

    assert attempts == [LogUnavailable, LogUnavailable]
    assert result.get()["topic"] == "open:export"
    assert TaskRun.objects.get(pk="exported-after-trouble").state == "succeeded"


def test_a_retry_that_cannot_be_sent_leaves_the_task_to_the_broker() -> None:
    unreachable = Unreachable("unreachable", set_as_current=False)

    @unreachable.task(base=LiveTask, bind=True, name="tests.unsent")
    def unsent(self: LiveTask) -> None:
        """Never run."""

    unsent.push_request(id="unsent", called_directly=False, is_eager=False, retries=0, args=(), kwargs={})
    with pytest.raises(Reject) as rejected:
        unsent.retry(exc=LogUnavailable("gone"), countdown=1)
    unsent.pop_request()

    assert rejected.value.requeue is True
    assert isinstance(rejected.value.reason, OperationalError)


def test_a_task_that_is_delivered_twice_succeeds_once(published: Any) -> None:
    publish("ledger:export", "message", 1)

    first = export_history.apply(kwargs={"topic": "ledger:export"}, task_id="delivered-twice")
    row = TaskRun.objects.get(pk="delivered-twice")
    second = export_history.apply(kwargs={"topic": "ledger:export"}, task_id="delivered-twice")

    assert (first.state, second.state) == ("SUCCESS", "IGNORED")
    assert len(list(exports.folder().glob("*.jsonl"))) == 1
    assert TaskRun.objects.get(pk="delivered-twice").updated_at == row.updated_at


def test_a_task_that_the_broker_lost_is_sent_again(settings: Settings, admin_user: Any) -> None:
    settings.HUB_TASK_LOST_SECONDS = 60
    lost = services.start_task(EXPORT_HISTORY, user=admin_user, kwargs={"topic": "ledger:1"})
    waiting = services.start_task(EXPORT_HISTORY, user=admin_user, kwargs={"topic": "ledger:2"})
    queued()  # as a broker that was flushed
    age(lost.id, 61)
    age(waiting.id, 59)

    sent = [send_overdue_tasks(), send_overdue_tasks()]

    assert sent == [1, 0]
    assert queued() == [(EXPORT_HISTORY, lost.id, {"topic": "ledger:1"})]


def test_a_task_that_has_begun_is_not_sent_again(settings: Settings, admin_user: Any) -> None:
    settings.HUB_TASK_LOST_SECONDS = 60
    begun = services.start_task(EXPORT_HISTORY, user=admin_user, kwargs={"topic": "ledger:1"})
    queued()
    TaskRun.objects.filter(pk=begun.id).update(state="started")
    age(begun.id, 61)

    assert send_overdue_tasks() == 0
    assert queued() == []
