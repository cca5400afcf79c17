"""The outbox of durable topics: every committed event is sent, and one that cannot be is in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection, connections, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY
from pytest_django import Settings

from notifications.events import Publication, Topic, durable, publish, publish_many
from notifications.events import relay as relaying
from notifications.events.event import encode, new_event
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import notices, outbox
from notifications.events.models import SetAsideEvent, StoredEvent, TopicHead
from notifications.events.relay import Relay, relay_forever
from notifications.events.threads import in_database_thread
from notifications.events.topics import registry
from tests.events.outbox import kept, leave_behind, refusing

pytestmark = pytest.mark.django_db(transaction=True)

EVENTS, HEADS = StoredEvent._meta.db_table, TopicHead._meta.db_table
LIST = "/admin/hub_events/setasideevent/"
LONG = 600.0


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def declare() -> Iterator[Callable[[bool], None]]:
    """Has the topics `gone:<name>` declared, or not."""

    class GoneTopic(Topic):
        pattern = "gone:<name>"
        retention = durable(days=1)

    def change(wanted: bool) -> None:
        registry.unregister(GoneTopic)
        if wanted:
            registry.register(GoneTopic)

    yield change
    change(False)


def stage_unreadable(topic: str, *, version: int = 0) -> None:
    """Stage a row whose text is no event."""
    StoredEvent.objects.create(
        topic=topic, type="message", time=datetime.now(UTC), encoded='{"topic": ', version=version
    )


def aside() -> list[tuple[str, str, int]]:
    """Topic, reason and attempts of what is set aside."""
    return list(SetAsideEvent.objects.order_by("pk").values_list("topic", "reason", "attempts"))


@pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(0), timedelta(hours=1)])
def test_what_two_looks_find_pending_is_sent_whatever_the_publishers_clock_said(ahead: timedelta) -> None:
    relay = Relay()
    leave_behind("ledger:a", 1, 2)
    leave_behind("ledger:b", 3)
    StoredEvent.objects.update(time=datetime.now(UTC) + ahead)

    due = relay.look()
    before = kept("ledger:a")
    relay.look()

    assert due
    assert before == []
    assert kept("ledger:a") == [(1, 1), (2, 2)]
    assert kept("ledger:b") == [(1, 3)]
    assert not relay.look()


def test_events_of_an_undeclared_topic_are_set_aside_and_hold_up_nothing(
    declare: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(True)
    leave_behind("gone:a", 1, 2)
    leave_behind("ledger:a", 3)
    declare(False)
    relay = Relay()

    relay.look()
    relay.look()
    waiting = outbox.pending()
    monkeypatch.setattr(relaying, "UNDECLARED_SECONDS", 0)
    due = relay.look()

    assert kept("ledger:a") == [(1, 3)]
    assert [(name, found.number) for name, found in waiting.items()] == [("gone:a", 2)]
    assert aside() == [("gone:a", "undeclared", 1), ("gone:a", "undeclared", 1)]
    assert outbox.pending() == {}
    assert not due


def test_a_process_that_declares_the_topic_takes_its_events_back_in_order(declare: Callable[[bool], None]) -> None:
    declare(True)
    leave_behind("gone:a", *range(5))
    declare(False)
    assert outbox.set_aside_undeclared("gone:a") == 5
    Relay().look()
    undeclared = aside()

    declare(True)
    Relay().look()

    assert undeclared == [("gone:a", "undeclared", 1)] * 5
    assert kept("gone:a") == [(number + 1, number) for number in range(5)]
    assert aside() == []


def test_an_unreadable_row_leaves_no_hole_and_counts_no_version() -> None:
    leave_behind("ledger:a", 1)
    stage_unreadable("ledger:a", version=9)

    event = publish("ledger:a", "message", 2, version=3)

    assert event.offset == 2
    assert kept("ledger:a") == [(1, 1), (2, 2)]
    assert aside() == [("ledger:a", "unreadable", 1)]


def test_a_row_whose_offset_the_database_refuses_is_set_aside_alone() -> None:
    leave_behind("ledger:a", 1)
    with refusing(EVENTS, "NEW.type = 'poison'"):
        with transaction.atomic():
            poison = publish("ledger:a", "poison", 2)
            publish("ledger:a", "message", 3)
            publish("ledger:b", "message", 4)
        sent = kept("ledger:a"), kept("ledger:b")
    found = SetAsideEvent.objects.get()
    retried = outbox.retry([found.pk])

    assert poison.offset is None
    assert sent == ([(1, 1), (2, 3)], [(1, 4)])
    assert (found.reason, found.attempts) == ("refused", 2)
    assert "refused by the test" in found.error
    assert retried == (1, 0)
    assert kept("ledger:a") == [(1, 1), (2, 3), (3, 2)]


@pytest.mark.parametrize("behind", [0, 1])
def test_a_head_that_is_behind_its_events_goes_on_after_them(behind: int) -> None:
    publish_many([Publication("ledger:a", "message", number) for number in (1, 2)])
    TopicHead.objects.update(offset=behind)

    assert publish("ledger:a", "message", 3).offset == 3
    assert aside() == []


def test_a_topic_that_fails_does_not_stop_the_next() -> None:
    relay = Relay()
    with refusing(HEADS, "NEW.topic = 'ledger:a'"):
        with transaction.atomic():
            publish_many([Publication(topic, "message", 1) for topic in ("ledger:a", "ledger:b")])
        numbered = kept("ledger:b")
        leave_behind("ledger:a", 2)
        leave_behind("ledger:b", 2)
        relay.look()
        relay.look()
        relayed = kept("ledger:b")
        left = outbox.pending()
        due = relay.look()

    assert numbered == [(1, 1)]
    assert relayed == [(1, 1), (2, 2)]
    assert [(name, found.number) for name, found in left.items()] == [("ledger:a", 2)]
    assert not due  # it is not tried again at once
    assert outbox.relay() == 2
    assert kept("ledger:a") == [(1, 1), (2, 2)]


def test_a_relay_passes_over_a_topic_that_another_is_numbering() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no locks of rows")
    publish("ledger:a", "message", 0)
    leave_behind("ledger:a", 1)
    leave_behind("ledger:b", 1)
    locked, done = threading.Event(), threading.Event()

    def number() -> None:
        with transaction.atomic():
            TopicHead.objects.select_for_update().get(pk="ledger:a")
            locked.set()
            done.wait(20)
        connections.close_all()

    other = threading.Thread(target=number)
    other.start()
    locked.wait(20)

    assert outbox.relay() == 1
    done.set()
    other.join()
    assert outbox.relay() == 1
    assert kept("ledger:a") == [(1, 0), (2, 1)]


def test_a_repetition_of_what_has_no_offset_yet_has_none_either() -> None:
    with transaction.atomic():
        first, again = (publish("ledger:a", "message", data, idempotency_key="k") for data in (1, 2))
    later = publish("ledger:a", "message", 3, idempotency_key="k")
    one, two = publish_many([Publication("ledger:a", "message", 4, idempotency_key="one call")] * 2)

    assert (first.offset, again.offset) == (None, None)
    assert (again.id, later.id, later.offset) == (first.id, first.id, 1)
    assert (two.id, two.offset, one.offset) == (one.id, 2, 2)
    assert kept("ledger:a") == [(1, 1), (2, 4)]


def test_more_than_one_transaction_numbers_are_all_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifications.events.logs.numbering.BATCH", 4)
    leave_behind("ledger:a", *range(9))

    assert outbox.relay() == 9
    assert kept("ledger:a") == [(number + 1, number) for number in range(9)]


def test_what_is_pending_and_set_aside_is_measured() -> None:
    leave_behind("ledger:a", 1, 2)
    stage_unreadable("ledger:b")
    assert outbox.relay() == 2
    leave_behind("ledger:c", 1, 2, 3)

    Relay().look()

    measured = {
        state: REGISTRY.get_sample_value("hub_outbox_events", {"state": state}) for state in ("pending", "set_aside")
    }
    assert measured == {"pending": 3, "set_aside": 1}


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants of a relay that looks once and then only when it hears a notice."""
    monkeypatch.setattr(relaying, "RELAY_SECONDS", LONG)
    monkeypatch.setattr(relaying, "LISTEN_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(notices, "_sent_at", float("-inf"))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition on the database holds."""
    async with asyncio.timeout(20):
        while not await in_database_thread(condition):
            await asyncio.sleep(0.02)


def listeners() -> list[int]:
    """The processes of the database server that serve a relay which waits for notices."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN hub_outbox' AND state = 'idle'")
        return [pid for (pid,) in cursor.fetchall()]


async def test_a_running_relay_sends_what_was_left_before_it_began(running: None) -> None:
    await in_database_thread(leave_behind, "ledger:a", 1, 2)

    task = asyncio.create_task(relay_forever())
    await until(lambda: kept("ledger:a") == [(1, 1), (2, 2)])

    task.cancel()
    await asyncio.wait([task])


async def test_a_notice_has_the_relay_send_at_once_also_after_its_connection_broke(running: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite sends no notices")
    task = asyncio.create_task(relay_forever())
    await until(lambda: len(listeners()) == 1)

    await in_database_thread(leave_behind, "ledger:a", 1)
    await until(lambda: kept("ledger:a") == [(1, 1)])
    before = await in_database_thread(listeners)
    await in_database_thread(lambda: connection.cursor().execute("SELECT pg_terminate_backend(%s)", before))
    await until(lambda: len(listeners()) == 1 and listeners() != before)
    await in_database_thread(leave_behind, "ledger:a", 2)
    await until(lambda: kept("ledger:a") == [(1, 1), (2, 2)])

    task.cancel()
    await asyncio.wait([task])


def test_a_process_sends_few_notices_and_counts_those_alone_that_were_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite sends no notices")
    monkeypatch.setattr(notices, "NOTICE_SECONDS", LONG)
    monkeypatch.setattr(notices, "_sent_at", float("-inf"))
    sent = []

    for commits in (False, True, True, True):
        with CaptureQueriesContext(connection) as queries, transaction.atomic():
            publish("ledger:a", "message", 1)
            transaction.set_rollback(not commits)
        sent.append(sum("NOTIFY" in query["sql"] for query in queries))

    assert sent == [1, 1, 0, 0]


@pytest.fixture
def sqlite_that() -> Iterator[Callable[[str], None]]:
    """Sets a limit of this thread's connection to SQLite, for the test alone."""
    if connection.vendor != "sqlite":
        pytest.skip("speaks of SQLite alone")
    yield lambda pragma: connection.cursor().execute(f"PRAGMA {pragma}") and None
    connection.close()


def fill_the_disk(sqlite_that: Callable[[str], None]) -> None:
    """From now on the database has no page to spare, which SQLite reports as it does a full disk."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # what was deleted before leaves pages that could be used again
        cursor.execute("PRAGMA page_count")
        pages = cursor.fetchone()[0]
    sqlite_that(f"max_page_count = {pages}")


def test_on_a_full_disk_nothing_is_half_written(sqlite_that: Callable[[str], None]) -> None:
    publish("ledger:a", "message", "kept")
    fill_the_disk(sqlite_that)
    large = "x" * 60_000

    with pytest.raises(LogUnavailable, match="full"):
        publish_many([Publication("ledger:a", "message", data) for data in ("small", large)])
    with pytest.raises(OperationalError, match="full"), transaction.atomic():
        publish("ledger:b", "message", "small")
        publish("ledger:b", "message", large)
    sqlite_that("max_page_count = 1000000")

    assert kept("ledger:a") == [(1, "kept")]
    assert kept("ledger:b") == []
    assert StoredEvent.objects.count() == 1
    assert publish("ledger:a", "message", "after").offset == 2


def test_an_event_that_finds_no_room_for_its_offset_is_sent_later(sqlite_that: Callable[[str], None]) -> None:
    publish("ledger:a", "message", 1)
    with transaction.atomic():
        transaction.on_commit(lambda: sqlite_that("query_only = ON"))
        publish("ledger:a", "message", 2)
    refused = kept("ledger:a")
    sqlite_that("query_only = OFF")

    assert refused == [(1, 1)]
    assert outbox.relay() == 1
    assert kept("ledger:a") == [(1, 1), (2, 2)]


def test_a_locked_database_takes_nothing(sqlite_that: Callable[[str], None]) -> None:
    sqlite_that("busy_timeout = 50")
    locked, done = threading.Event(), threading.Event()

    def write() -> None:
        with transaction.atomic():
            locked.set()
            done.wait(20)
        connections.close_all()

    other = threading.Thread(target=write)
    other.start()
    locked.wait(20)

    with pytest.raises(LogUnavailable, match="locked"):
        publish("ledger:a", "message", 1)
    with pytest.raises(OperationalError, match="locked"), transaction.atomic():
        publish("ledger:a", "message", 1)
    done.set()
    other.join()

    assert StoredEvent.objects.count() == 0
    assert publish("ledger:a", "message", 2).offset == 1


@pytest.fixture
def unreadable() -> SetAsideEvent:
    stage_unreadable("ledger:a")
    outbox.relay()
    return SetAsideEvent.objects.get()


def act(client: Client, action: str, event: SetAsideEvent) -> str:
    """The page that follows an action on an event that was set aside."""
    answer = client.post(LIST, {"action": action, "_selected_action": [event.pk]}, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_admin_shows_what_was_set_aside(admin_client: Client, unreadable: SetAsideEvent) -> None:
    listed = admin_client.get(LIST).content.decode()
    shown = admin_client.get(f"{LIST}{unreadable.pk}/change/").content.decode()

    assert "its text is no event" in listed
    assert "Input data was truncated" in listed
    assert "{&quot;topic&quot;:" in shown
    assert "_save" not in shown


def test_the_admin_tries_again_and_counts(admin_client: Client, unreadable: SetAsideEvent) -> None:
    publish("ledger:a", "message", 1)

    refused = act(admin_client, "try_again", unreadable)
    attempts = aside()
    event = new_event(topic="ledger:a", type="message", data="mended")
    SetAsideEvent.objects.update(encoded=encode(event))
    sent = act(admin_client, "try_again", unreadable)

    assert "Not published: 1." in refused
    assert attempts == [("ledger:a", "unreadable", 2)]
    assert "Published: 1." in sent
    assert kept("ledger:a") == [(1, 1), (2, "mended")]
    assert aside() == []


def test_the_admin_discards_and_notes_it(admin_client: Client, admin_user: User, unreadable: SetAsideEvent) -> None:
    page = act(admin_client, "discard", unreadable)

    assert "Discarded: 1." in page
    assert aside() == []
    assert [entry.object_repr for entry in admin_user.logentry_set.all()] == ["ledger:a: message"]


def test_who_may_only_look_decides_nothing(client: Client, unreadable: SetAsideEvent) -> None:
    user = User.objects.create_user("auditor", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_setasideevent"))
    client.force_login(user)

    for action in ("try_again", "discard", "delete_selected"):
        act(client, action, unreadable)

    assert aside() == [("ledger:a", "unreadable", 1)]
