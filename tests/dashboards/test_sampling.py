"""What a sample measures: rates between two moments, of processes that come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client
from pytest_django import Settings

from notifications.dashboards import measuring, services
from notifications.dashboards.measuring import Deliveries, Measurement
from notifications.delivery.registry import Node
from notifications.events import counters
from notifications.events.topics import resolve
from notifications.testing.plugin import PublishedEvents


@pytest.fixture(autouse=True)
def _first_sample(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    measuring._of_this_process = None
    yield
    measuring._of_this_process = None


def measured(time: float, **changes: object) -> Measurement:
    readings = {"machine": "m", "busy": 0.0, "elapsed": 0.0, "connections": 0, "published": 0, "tasks": 0, "nodes": {}}
    return Measurement(time=time, **{**readings, **changes})  # type: ignore[arg-type]


def test_a_sample_is_published_with_plain_numbers(published: PublishedEvents) -> None:
    data = services.sample_system()

    (event,) = published
    assert (event.topic, event.type, event.key, event.data) == ("dashboard:system", "system.sample", "system", data)
    assert set(data) == {"cpu", "memory", "load", "connections", "published", "delivered", "tasks"}
    assert 0 <= data["cpu"] <= 100
    assert 0 < data["memory"] <= 100


def test_the_first_sample_is_no_spike() -> None:
    counters.add("published", 1_000_000)
    counters.add("tasks_done", 1_000_000)

    data = services.sample_system()

    assert (data["published"], data["delivered"], data["tasks"]) == (0, 0, 0)


def test_rates_are_what_was_added_per_second() -> None:
    before = measured(100.0, published=10, tasks=5)
    now = measured(102.0, published=30, tasks=6, connections=7, nodes={"a": Deliveries(9, 102.0, 4.5)})

    data = services.data_of(now, before)

    assert (data["published"], data["tasks"], data["delivered"], data["connections"]) == (10.0, 0.5, 4.5, 7)


def test_counters_that_began_anew_give_no_negative_rate() -> None:
    data = services.data_of(measured(101.0, published=3, tasks=0), measured(100.0, published=500, tasks=20))

    assert (data["published"], data["tasks"]) == (0.0, 0.0)


def test_the_second_sample_counts_what_was_published_since_the_first() -> None:
    services.sample_system()

    assert services.sample_system()["published"] > 0


def test_the_cpu_is_busy_for_its_share_of_the_time() -> None:
    before, now = measured(0.0, busy=10.0, elapsed=100.0), measured(1.0, busy=11.5, elapsed=102.0)

    assert measuring.cpu_percent(now, before) == 75.0


def node(id: str, delivered: int, renewed_at: float) -> Node:
    return Node(id=id, channel="", delivered=delivered, renewed_at=renewed_at)


def test_deliveries_are_compared_between_the_leases_of_each_process() -> None:
    first = measuring.deliveries([node("a", 100, 10.0), node("b", 50, 10.0)], {})
    second = measuring.deliveries([node("a", 130, 12.0), node("b", 50, 10.0)], first)
    third = measuring.deliveries([node("a", 130, 12.0), node("b", 56, 12.0), node("new", 900, 12.0)], second)

    assert {id: found.rate for id, found in first.items()} == {"a": 0, "b": 0}
    assert {id: found.rate for id, found in second.items()} == {"a": 15, "b": 0}
    assert {id: found.rate for id, found in third.items()} == {"a": 15, "b": 3, "new": 0}


def test_a_process_that_restarted_gives_no_negative_rate() -> None:
    before = measuring.deliveries([node("a", 1_000, 10.0)], {})

    assert measuring.deliveries([node("a", 5, 11.0)], before)["a"].rate == 0


def test_any_process_goes_on_from_the_last_measurement_in_redis(redis_url: str, settings: Settings) -> None:
    settings.HUB_REDIS_URL = redis_url
    first, nothing = measuring.taken()
    measuring._of_this_process = None

    _, before = measuring.taken()

    assert nothing is None
    assert before == first


def test_signed_in_users_may_watch() -> None:
    topic = resolve("dashboard:system")

    assert topic.allows("subscribe", User(username="ana"))
    assert not topic.allows("subscribe", AnonymousUser())
    assert not topic.allows("publish", User(username="ana", is_staff=True))


@pytest.mark.django_db
def test_the_dashboard_is_for_signed_in_users(client: Client) -> None:
    assert client.get("/").headers["Location"] == "/accounts/login/?next=/"

    client.force_login(User.objects.create_user("ana"))

    assert 'topic="dashboard:system"' in client.get("/").content.decode()
