"""One beat acts, however many there are."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from django.db import OperationalError
from django.db.models.functions import Now

from notifications.events.models import Lease
from tests.servers import eventually
from tests.workers.site import Site
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


def test_of_two_beats_one_acts_and_the_other_takes_over_when_it_is_killed(tmp_path: Path, redis_url: str) -> None:
    site = Site(tmp_path, redis_url, lease_seconds=3)
    with redis.Redis.from_url(redis_url) as broker:
        broker.flushall()

        def senders() -> list[str]:
            """The processes that sent the tasks in the queue, in their order."""
            tasks = reversed(broker.lrange("celery", 0, -1))  # type: ignore[arg-type]
            return [json.loads(task)["headers"]["origin"] for task in tasks]

        beats = [site.start(name, "celery", "-A", "workers", "beat", "-l", "info") for name in ("first", "second")]
        eventually(lambda: len(senders()) >= 3, seconds=30)
        for beat_process in beats:
            beat_process.wait_for("lease ->")
        (leader,) = set(senders())
        killed = next(process for process in beats if leader.startswith(f"gen{process.process.pid}@"))
        (other,) = (process for process in beats if process is not killed)
        killed.kill()
        before = senders()
        at = time.monotonic()
        eventually(lambda: len(senders()) > len(before))
        taken_over = time.monotonic() - at

        assert all(sender.startswith(f"gen{other.process.pid}@") for sender in senders()[len(before) :])
        assert set(before) == {leader}
        assert taken_over < 3 + 2
        assert other.stop() == 0
