"""The same promises of every log: memory, Redis and database."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis
from channels.layers import channel_layers
from pytest_django import Settings

from notifications.events import Cursor, Publication, Topic, durable, publish, publish_many, window
from notifications.events.event import Event
from notifications.events.selectors import history, position
from notifications.events.topics import registry

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=["memory", "redis", "database"])
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
