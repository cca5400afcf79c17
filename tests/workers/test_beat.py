"""One beat acts, however many there are."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from django.db import OperationalError
from django.db.models.functions import Now

from notifications.events.models import Lease
from tests.servers import eventually
from workers import app, beat
from workers.beat import LeasedScheduler
from workers.schedule import SAMPLE_SYSTEM

pytestmark = pytest.mark.django_db(transaction=True)


class Recording(Celery):
    """A Celery application that notes what is sent."""

    def __init__(self) -> None:
        super().__init__("recording", broker="memory://localhost", set_as_current=False)
        self.sent: list[str] = []

    def send_task(self, name: str, *args: Any, **options: Any) -> None:  # type: ignore[override]
        self.sent.append(name)


@pytest.fixture(autouse=True)
def _asks_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat, "RENEW_SECONDS", 0.0)


def scheduler(seconds: float = 0.01) -> LeasedScheduler:
    recording = Recording()
    recording.conf.beat_schedule = {"often": {"task": "tests.often", "schedule": seconds}}
    return LeasedScheduler(recording)


def sent(of: LeasedScheduler) -> int:
    return len(of.app.sent)  # type: ignore[attr-defined]


def ticked(*schedulers: LeasedScheduler) -> bool:
    for one in schedulers:
        one.tick()
    return True


def expire() -> None:
    """As if the holder had been killed a while ago."""
    Lease.objects.update(expires_at=Now() - timedelta(seconds=1))


def test_the_first_beat_sends_and_the_second_waits() -> None:
    first, second = scheduler(), scheduler()

    eventually(lambda: ticked(first, second) and sent(first) >= 5)

    assert sent(second) == 0
    assert first.leads
    assert not second.leads


def test_a_beat_that_stops_hands_over_at_once() -> None:
    first, second = scheduler(), scheduler()
    ticked(first, second)

    first.close()
    eventually(lambda: ticked(second) and sent(second) >= 1)

    assert not first.leads
    assert second.leads


def test_a_beat_takes_over_from_one_that_died_and_that_one_stays_quiet() -> None:
    first, second = scheduler(), scheduler()
    ticked(first, second)
    expire()

    eventually(lambda: ticked(second) and sent(second) >= 1)
    before = sent(first)
    eventually(lambda: ticked(first, second) and sent(second) >= 5)

    assert sent(first) == before
    assert not first.leads


def test_what_fell_due_while_the_holder_was_dead_is_sent() -> None:
    first, second = scheduler(3600), scheduler(3600)
    ticked(first, second)
    entry = ScheduleEntry(name="daily", task="tests.daily", schedule=crontab(), app=second.app)
    expire()
    second.apply_entry(entry)
    assert sent(second) == 0

    ticked(second)

    assert second.app.sent == ["tests.daily"]  # type: ignore[attr-defined]


def test_what_the_holder_sent_long_ago_is_not_sent_again() -> None:
    first, second = scheduler(3600), scheduler(3600)
    ticked(first, second)
    entry = ScheduleEntry(name="daily", task="tests.daily", schedule=crontab(), app=second.app)
    second.apply_entry(entry)
    due = time.monotonic() - beat.LEASE_SECONDS - 60
    second._left_to_holder["daily"] = (due, entry)
    expire()

    ticked(second)

    assert second.leads
    assert sent(second) == 0


def test_a_beat_that_cannot_reach_the_database_stops_when_its_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    first = scheduler()
    ticked(first)

    def unreachable(*args: Any, **kwargs: Any) -> bool:
        raise OperationalError("gone")

    monkeypatch.setattr("notifications.events.leases.acquire", unreachable)
    ticked(first)
    led_on = first.leads
    first._leads_until = time.monotonic()
    before = sent(first)
    eventually(lambda: ticked(first) and bool(first._left_to_holder))

    assert led_on
    assert not first.leads
    assert sent(first) == before


def test_the_hub_schedules_sampling_each_second_with_an_expiry() -> None:
    entry = LeasedScheduler(app).schedule["sample the system"]

    assert entry.task == SAMPLE_SYSTEM
    assert entry.schedule == schedule(timedelta(seconds=1))
    assert entry.options == {"expires": 2.0}
