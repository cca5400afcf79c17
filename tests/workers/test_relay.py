"""Workers publish what a dead process left behind, also where no server process does."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django import Settings

from notifications.events import publish, relay
from notifications.events.logs import outbox
from notifications.events.logs.numbering import locked_head
from notifications.events.threads import executor
from tests.events.outbox import kept, leave_behind
from tests.servers import HubProcess, RedisServer, eventually
from tests.workers.site import Site
from workers.tasks import relay_events

DIES = """
import os, signal

import django

django.setup()

from django.db import transaction

from notifications.events import publish

with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    for number in range(3):
        publish("ledger:1", "message", number)
"""
OFTEN = "from workers.schedule import SCHEDULE; SCHEDULE['relay what dead processes left']['schedule'] = 0.5"


@pytest.fixture
def _alone(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_alone")
def test_what_was_left_is_published_once_and_in_order() -> None:
    publish("ledger:a", "message", "before")
    leave_behind("ledger:a", 1, 2)
    leave_behind("ledger:b", 3)
    leave_behind("ledger:a", 4)

    relayed = [relay_events(), relay_events()]
    publish("ledger:a", "message", "after")

    assert relayed == [4, 0]
    assert kept("ledger:a") == [(1, "before"), (2, 1), (3, 2), (4, 4), (5, "after")]
    assert kept("ledger:b") == [(1, 3)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_alone")
def test_where_nothing_was_left_it_is_one_query(
    django_assert_num_queries: Callable[[int], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "GRACE_SECONDS", 3600)
    publish("ledger:a", "message", 1)

    with django_assert_num_queries(1):
        assert relay_events() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_alone")
def test_what_is_being_published_is_left_to_its_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed after the first look has had no time to be numbered yet."""
    monkeypatch.setattr(relay.time, "sleep", lambda seconds: (outbox.relay(), leave_behind("ledger:a", "younger")))
    leave_behind("ledger:a", "older")

    relayed = relay_events()

    assert relayed == 0
    assert kept("ledger:a") == [(1, "older")]
    assert outbox.pending()["ledger:a"].number == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_alone")
def test_a_topic_that_a_server_relays_at_the_moment_is_passed_over() -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("this database has one writer at a time")
    publish("ledger:a", "message", 0)
    leave_behind("ledger:a", 1)
    leave_behind("ledger:b", 2)

    with transaction.atomic():
        locked_head("ledger:a")
        meanwhile = executor("database").submit(relay_events).result(20)

    assert meanwhile == 1
    assert (kept("ledger:a"), kept("ledger:b")) == ([(1, 0)], [(1, 2)])
    assert relay_events() == 1
    assert kept("ledger:a") == [(1, 0), (2, 1)]


@pytest.mark.timeout(120)
def test_workers_and_a_beat_relay_without_any_server(
    tmp_path: Path, broker: RedisServer, workers: list[HubProcess]
) -> None:
    site = Site(tmp_path, broker.url, ready=OFTEN)
    site.environment["HUB_TOPICS"] = '{"ledger": {"durable": true}}'

    def offsets() -> list[tuple[int | None, Any]]:
        with closing(sqlite3.connect(tmp_path / "data" / "hub.sqlite3")) as database:
            found = database.execute('SELECT "offset", encoded FROM hub_events_storedevent ORDER BY id').fetchall()
        return [(offset, json.loads(encoded)["data"]) for offset, encoded in found]

    killed = HubProcess(["-c", DIES], tmp_path, site.environment, name="killed")
    assert killed.process.wait(30) == -9, killed.output
    assert offsets() == [(None, 0), (None, 1), (None, 2)]
    workers += site.workers("first", "second")
    workers += [site.start("beat", "celery", "-A", "workers", "beat", "-l", "info")]

    eventually(lambda: offsets()[0][0] is not None, seconds=20)

    assert offsets() == [(1, 0), (2, 1), (3, 2)]
