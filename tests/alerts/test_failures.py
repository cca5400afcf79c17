"""Failed Celery tasks raise alerts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from django.db import OperationalError, connection
from pytest_django import Settings

from notifications.alerts.models import Alert
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def app() -> Iterator[Celery]:
    application = Celery("failures", set_as_current=False)
    application.conf.task_always_eager = True

    @application.task(name="shop.divide", shared=False)
    def divide(divisor: int) -> float:
        return 1 / divisor

    yield application
    application.close()


def test_a_failed_task_fires_and_its_next_success_resolves(app: Celery) -> None:
    task = app.tasks["shop.divide"]

    task.delay(0)
    task.delay(0)
    task.delay(1)
    task.delay(1)

    [fired, resolved] = history("alerts:all")[0]
    assert (fired.type, resolved.type) == ("alert.firing", "alert.resolved")
    assert (fired.data["name"], fired.data["severity"], fired.data["source"]) == ("TaskFailed", "warning", "celery")
    assert fired.data["labels"] == {"task": "shop.divide"}
    assert fired.data["summary"] == "shop.divide: ZeroDivisionError: division by zero"
    assert resolved.data["summary"] == "shop.divide succeeded again"
    assert resolved.data["count"] == 2


def test_a_task_that_succeeds_raises_nothing(app: Celery) -> None:
    app.tasks["shop.divide"].delay(1)

    assert not Alert.objects.exists()


def test_a_task_goes_on_when_its_alert_cannot_be_stored(app: Celery) -> None:
    def broken(*_: object) -> None:
        raise OperationalError("the database is away")

    with connection.execute_wrapper(broken):
        assert app.tasks["shop.divide"].delay(2).get() == 0.5
        failed = app.tasks["shop.divide"].delay(0)

    assert isinstance(failed.result, ZeroDivisionError)
    assert not Alert.objects.exists()
