"""The same promises of every log: memory, that of another process, Redis and database."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import redis
from channels.layers import channel_layers, get_channel_layer
from pytest_django import Settings

from notifications.events import (
    Cursor,
    Publication,
    Topic,
    apublish,
    counters,
    durable,
    local,
    publish,
    publish_many,
    window,
)
from notifications.events.event import Event, new_event
from notifications.events.exceptions import InvalidEvent
from notifications.events.logs import Draft, log_for
from notifications.events.logs.base import Appended, Log
from notifications.events.messages import event_of, group_of
from notifications.events.selectors import history, position
from notifications.events.services import aremove_history, remove_history
from notifications.events.topics import registry, resolve
from notifications.testing.plugin import PublishedEvents
from tests.servers import HubProcess

pytestmark = pytest.mark.django_db(transaction=True)

OWNER = """
import asyncio, sys

import django
from django.conf import settings

settings.HUB_SOCKET = sys.argv[1]
django.setup()

from notifications.events import Topic, logs, window
from notifications.events.topics import registry
from notifications.server.owner import OwnerServer


class LogTopic(Topic):
    pattern = "log:<name>"
    retention = window(size=5, seconds=60)


async def serve():
    server = OwnerServer()
    server.operations["forget"] = logs.memory_log.cache_clear
    await server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()


registry.register(LogTopic)
asyncio.run(serve())
"""


@pytest.fixture(scope="module")
def owner_socket() -> Iterator[str]:
    """The socket of a process that owns a memory log."""
    with tempfile.TemporaryDirectory(prefix="hub-owner-") as folder:
        socket = str(Path(folder, "hub.sock"))
        process = HubProcess(
            ["-c", OWNER, socket], Path(folder), {"DJANGO_SETTINGS_MODULE": "tests.settings"}, name="owner"
        )
        process.wait_for("serving")
        yield socket
        process.kill()


@pytest.fixture(params=["memory", "owner", "redis", "database"])
def log(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """A topic `log:<name>` that keeps five events in the log of the parameter."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        settings.HUB_REDIS_URL = url
        settings.CHANNEL_LAYERS = {
            "default": {
                "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
                "CONFIG": {"hosts": [{"address": url}]},
            }
        }
    elif request.param == "owner":
        settings.HUB_SOCKET = request.getfixturevalue("owner_socket")
        local.owner.call("forget")
    else:
        settings.HUB_SOCKET = ""
    kept = durable(days=1, size=5) if request.param == "database" else window(size=5, seconds=60)

    class LogTopic(Topic):
        pattern = "log:<name>"
        retention = kept

    registry.register(LogTopic)
    yield request.param
    registry.unregister(LogTopic)
    channel_layers.backends.clear()


def test_offsets_count_from_one_without_holes(log: str) -> None:
    events = [publish("log:a", "counted", {"n": number}) for number in range(1, 4)]

    assert [event.offset for event in events] == [1, 2, 3]
    assert len({event.epoch for event in events}) == 1
    assert position("log:a") == Cursor(3, events[0].epoch)


def test_what_was_published_is_read_again(log: str) -> None:
    publish("log:a", "order.paid", {"amount": "12.50", "ünï": ["✓", None, 1.5]}, key="order-1")

    events, _ = history("log:a")

    assert events == [
        Event(topic="log:a", type="order.paid", data={"amount": "12.50", "ünï": ["✓", None, 1.5]}, key="order-1")
    ]


def test_a_publisher_whose_clock_is_behind_loses_nothing(log: str) -> None:
    topic, event = resolve("log:a"), new_event(topic="log:a", type="message", data="late")
    assert event.time is not None
    late = msgspec.structs.replace(event, time=event.time - timedelta(hours=2))

    log_for(topic.retention).append([Draft(topic, late)])
    publish("log:a", "message", "in time")

    assert [found.data for found in history("log:a")[0]] == ["late", "in time"]


def test_reading_goes_on_after_a_cursor(log: str) -> None:
    for number in range(1, 5):
        publish("log:a", "counted", number)
    begun = position("log:a").epoch

    after, _ = history("log:a", since=Cursor(2, begun))
    first, _ = history("log:a", since=Cursor(2, begun), limit=1)

    assert [event.data for event in after] == [3, 4]
    assert [event.data for event in first] == [3]


def test_reading_backwards_begins_with_the_newest(log: str) -> None:
    for number in range(1, 5):
        publish("log:a", "counted", number)

    newest, _ = history("log:a", limit=2, reverse=True)
    before, _ = history("log:a", since=Cursor(3), limit=2, reverse=True)

    assert [event.data for event in newest] == [4, 3]
    assert [event.data for event in before] == [2, 1]


def test_a_limit_of_zero_asks_for_the_position_only(log: str) -> None:
    publish("log:a", "counted", 1)

    events, where = history("log:a", limit=0)

    assert events == []
    assert where.offset == 1


def test_an_unused_topic_has_an_epoch_that_its_first_event_keeps(log: str) -> None:
    before = position("log:a")

    event = publish("log:a", "counted", 1)

    assert before == Cursor(0, event.epoch)
    assert event.epoch != ""


def test_topics_do_not_share_offsets(log: str) -> None:
    publish("log:a", "counted", 1)

    assert publish("log:b", "counted", 1).offset == 1


def test_a_repeated_idempotency_key_appends_nothing(log: str) -> None:
    first = publish("log:a", "paid", {"n": 1}, idempotency_key="k")

    again = publish("log:a", "paid", {"n": 2}, idempotency_key="k")
    elsewhere = publish("log:b", "paid", {"n": 3}, idempotency_key="k")

    assert (again.id, again.offset, again.epoch) == (first.id, 1, first.epoch)
    assert elsewhere.offset == 1
    assert [event.data for event in history("log:a")[0]] == [{"n": 1}]


def test_concurrent_publishers_get_every_offset_once(log: str) -> None:
    offsets: list[int | None] = []

    def publish_ten() -> None:
        offsets.extend([publish("log:a", "counted", number).offset for number in range(10)])

    publishers = [threading.Thread(target=publish_ten) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()

    assert sorted(offset or 0 for offset in offsets) == list(range(1, 41))
    assert position("log:a").offset == 40


def test_many_events_keep_their_order(log: str) -> None:
    events = publish_many([Publication("log:a", "counted", number) for number in range(4)])

    assert [event.offset for event in events] == [1, 2, 3, 4]
    assert [event.data for event in history("log:a")[0]] == [0, 1, 2, 3]


def test_a_window_keeps_the_newest_and_the_position(log: str) -> None:
    if log == "database":
        from notifications.events.logs.database import prune

        for number in range(8):
            publish("log:a", "counted", number)
        assert prune() == 3
    else:
        for number in range(8):
            publish("log:a", "counted", number)

    events, where = history("log:a")

    assert [event.offset for event in events] == [4, 5, 6, 7, 8]
    assert where.offset == 8


def test_tags_are_kept_and_make_no_other_event(log: str) -> None:
    published = publish("log:a", "order.paid", 1, tags={"country": "DE", "note": ""})
    publish("log:a", "order.paid", 1, tags={})

    tagged, untagged = history("log:a")[0]

    assert published.tags == tagged.tags == {"country": "DE", "note": ""}
    assert untagged.tags is None
    assert tagged == untagged


def test_an_event_may_be_for_those_alone_who_are_connected(log: str) -> None:
    if log == "database":
        with pytest.raises(InvalidEvent, match="durable"):
            publish("log:a", "typing", "ana", keep=False)
        return
    kept = publish("log:a", "counted", 1)

    fleeting = publish("log:a", "typing", "ana", keep=False)

    assert (fleeting.offset, fleeting.epoch) == (0, "")
    assert history("log:a") == ([kept], kept.cursor)


def test_a_version_that_is_not_newer_is_dropped(log: str, published: PublishedEvents) -> None:
    before = counters.totals().get("published", 0)

    events = [publish("log:a", "price", data, version=version) for data, version in (("a", 2), ("b", 2), ("c", 1))]
    newer = publish("log:a", "price", "d", version=3)

    assert [event.offset for event in events] == [1, 1, 1]
    assert {event.epoch for event in events} == {newer.epoch}
    assert newer.offset == 2
    assert [event.data for event in history("log:a")[0]] == ["a", "d"]
    assert [event.data for event in published] == ["a", "d"]
    assert counters.totals()["published"] - before == 2


@pytest.mark.parametrize("log", ["memory", "database"], indirect=True)
async def test_a_dropped_version_is_not_announced(log: str) -> None:
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group_of("log:a"), channel)

    for number, version in enumerate((5, 4, 5, 6)):
        await apublish("log:a", "price", number, version=version)

    announced = [await asyncio.wait_for(layer.receive(channel), 10) for _ in range(2)]
    assert [message["offset"] for message in announced] == [1, 2]
    assert [event_of(message).decoded().data for message in announced] == [0, 3]


@pytest.mark.parametrize("log", ["redis"], indirect=True)
def test_redis_does_not_announce_a_dropped_version(log: str, redis_url: str) -> None:
    listener = redis.Redis.from_url(redis_url).pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=10)["type"] == "psubscribe"

    for number, version in enumerate((5, 4, 5, 6)):
        publish("log:a", "price", f"number {number}", version=version)

    announced = [listener.get_message(timeout=10)["data"] for _ in range(2)]
    assert b"number 0" in announced[0]
    assert b"number 3" in announced[1]
    listener.close()


def test_a_version_of_another_epoch_counts_anew(log: str) -> None:
    offsets = [
        publish("log:a", "price", None, version=version, version_epoch=epoch).offset
        for version, epoch in ((7, "a"), (1, "b"), (1, "b"), (7, "a"), (8, ""), (8, ""))
    ]

    assert offsets == [1, 2, 2, 3, 4, 4]


def test_versions_are_compared_as_the_numbers_they_are(log: str) -> None:
    versions = [9, 10, 2**53, 2**53 + 1, 2**53, 2**63 - 1, 2**63 - 2]

    offsets = [publish("log:a", "price", None, version=version).offset for version in versions]

    assert offsets == [1, 2, 3, 4, 4, 5, 5]


def test_an_event_without_a_version_leaves_the_last_one_as_it_is(log: str) -> None:
    publish("log:a", "price", "old", version=2)
    publish("log:a", "note", "no version")
    publish("log:b", "price", "another topic", version=1)

    assert publish("log:a", "price", "older", version=1).offset == 2
    assert publish("log:a", "price", "new", version=3, idempotency_key="k").offset == 3


def test_versions_of_one_call_are_told_apart(log: str) -> None:
    drafts = [
        Draft(resolve("log:a"), new_event(topic="log:a", type="price", data=data), version=version)
        for data, version in (("a", 1), ("b", 1), ("c", 0), ("d", 2))
    ]

    appended = log_for(resolve("log:a").retention).append(drafts)

    assert [event.decoded().data for event, _ in appended] == ["a", "b", "c", "d"]
    assert [repeated for _, repeated in appended] == [False, True, False, False]
    assert [event.data for event in history("log:a")[0]] == ["a", "c", "d"]


def test_of_concurrent_publishers_of_a_version_one_is_heard(log: str) -> None:
    ready = threading.Barrier(4)
    offsets: list[int | None] = []

    def publish_versions() -> None:
        for version in range(1, 6):
            ready.wait(timeout=10)
            offsets.append(publish("log:a", "price", version, version=version).offset)

    publishers = [threading.Thread(target=publish_versions) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()

    assert sorted(offset or 0 for offset in offsets) == [offset for offset in range(1, 6) for _ in range(4)]
    assert [event.data for event in history("log:a")[0]] == [1, 2, 3, 4, 5]


def test_a_removed_history_is_gone_and_the_position_stays(log: str) -> None:
    for number in range(1, 4):
        publish("log:a", "counted", number, version=number)
    publish("log:b", "counted", "another topic")
    before = position("log:a")

    remove_history(topic="log:a")

    assert history("log:a") == ([], before)
    assert [event.data for event in history("log:b")[0]] == ["another topic"]
    assert publish("log:a", "counted", 3, version=3).offset == 3
    assert publish("log:a", "counted", 4, version=4).cursor == Cursor(4, before.epoch)
    assert [event.data for event in history("log:a")[0]] == [4]


async def test_only_who_has_seen_all_that_was_removed_goes_on(log: str) -> None:
    topic = resolve("log:a")
    kept = log_for(topic.retention)
    events = [await apublish("log:a", "counted", number) for number in range(1, 4)]
    seen = [event.cursor for event in events[1:]]

    async def goes_on() -> list[bool]:
        return [(await kept.aread(topic, since=cursor, limit=None)).continues(cursor) for cursor in seen]

    before = await goes_on()
    await aremove_history(topic="log:a")
    removed = await goes_on()
    await apublish("log:a", "counted", 4)

    assert before == [True, True]
    assert removed == [False, True]
    assert await goes_on() == [False, True]


def test_removing_what_was_never_kept_changes_nothing(log: str) -> None:
    remove_history(topic="log:a")

    assert publish("log:a", "counted", 1).offset == 1


class Waiting(Log):
    """A log of somebody's own, whose answer nothing refers to but who waits for it."""

    answer: weakref.ref[asyncio.Future[list[Appended]]]

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        future = asyncio.get_running_loop().create_future()
        self.answer = weakref.ref(future)
        return await future


async def test_what_nobody_awaits_is_appended_all_the_same() -> None:
    waiting = Waiting()
    answers: asyncio.Queue[Appended | Exception] = asyncio.Queue()
    appended = Appended(new_event(topic="open:1", type="message", data=1))

    waiting.append_soon(Draft(resolve("open:1"), appended.event), answers.put_nowait)
    await asyncio.sleep(0)
    gc.collect()
    answer = waiting.answer()
    assert answer is not None
    answer.set_result([appended])

    assert await asyncio.wait_for(answers.get(), 5) == appended
