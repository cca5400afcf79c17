from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import Group
from django.db import connection, transaction
from pytest_django import Settings

from notifications.events import (
    Event,
    Publication,
    Sender,
    apublish,
    publish,
    publish_many,
    publishes,
)
from notifications.events.event import Cursor, encode, new_id
from notifications.events.exceptions import (
    EventTooLarge,
    InEventLoop,
    InvalidEvent,
    LogUnavailable,
    NothingKept,
    UnknownTopic,
)
from notifications.events.logs.numbering import current_epoch
from notifications.events.logs.outbox import relay
from notifications.events.models import StoredEvent
from notifications.events.selectors import history
from notifications.events.services import apublish_encoded, aremove_history, remove_history
from notifications.testing.plugin import PublishedEvents
from tests.servers import free_port

TOPICS = ["open:1", "ledger:1"]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
def test_an_event_published_outside_of_a_transaction_has_its_offset(topic: str) -> None:
    event = publish(topic, "order.paid", {"amount": Decimal("12.50")}, key="7", sender=Sender(user="1"))

    assert event.offset == 1
    assert event.data == {"amount": "12.50"}
    assert uuid.UUID(event.id).version == 7
    assert uuid.UUID(event.id).variant == uuid.RFC_4122
    assert event.id == str(uuid.UUID(event.id))
    assert event.time is not None
    assert int(event.id.replace("-", "")[:12], 16) == round(event.time.timestamp() * 1000)
    assert abs((datetime.now(UTC) - event.time).total_seconds()) < 60


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
def test_an_event_of_a_transaction_appears_with_its_commit(topic: str) -> None:
    with transaction.atomic():
        event = publish(topic, "message", 1)
        inside, _ = history(topic)

    assert event.offset is None
    assert inside == []
    assert [(found.id, found.offset) for found in history(topic)[0]] == [(event.id, 1)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
def test_a_rollback_takes_the_event_with_it(topic: str, published: PublishedEvents) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish(topic, "message", 1)
        raise ZeroDivisionError

    assert published == []
    assert history(topic)[0] == []
    assert publish(topic, "message", 2).offset == 1


@pytest.mark.django_db(transaction=True)
def test_immediately_does_not_wait_for_the_commit() -> None:
    with transaction.atomic():
        event = publish("open:1", "progress", 50, immediately=True)

    assert event.offset == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
async def test_an_event_that_is_not_decoded_is_the_same_event(topic: str) -> None:
    sender = Sender(user="1", client="c", info={"name": "Ana"})
    encoded = await apublish_encoded(
        topic, "order.paid", {"price": Decimal("1.5"), "in": (1, 2)}, key="k", sender=sender
    )

    assert bytes(encoded.data) == b'{"price":"1.5","in":[1,2]}'
    assert encoded.cursor == Cursor(1, encoded.epoch)
    decoded = encoded.decoded()
    assert decoded == Event(topic=topic, type="order.paid", data={"price": "1.5", "in": [1, 2]}, key="k")
    assert (decoded.id, decoded.time, decoded.sender) == (encoded.id, encoded.time, sender)
    assert (decoded.offset, decoded.epoch) == (encoded.offset, encoded.epoch)
    assert encode(decoded) == encode(encoded)


@pytest.mark.django_db(transaction=True)
def test_data_that_is_json_text_already_is_published_without_what_means_nothing_in_it() -> None:
    text = msgspec.Raw(b' {\n "a" : [1,\r\n 2.50], "\\u00e9": "\\n", "a": [3]}')

    assert publish("open:1", "message", text).data == {"a": [3], "é": "\n"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "text", [b"", b"{", b"1 2", b"[1,]", b"NaN", b"1e999", b'"\xff"', b'"\\ud800"', b"[" * 5_000 + b"]" * 5_000]
)
def test_text_that_is_not_json_is_not_data(text: bytes) -> None:
    with pytest.raises(InvalidEvent, match="data must be JSON"):
        publish("open:1", "message", msgspec.Raw(text))

    assert history("open:1")[0] == []


@pytest.mark.django_db(transaction=True)
def test_the_relay_publishes_what_a_dead_process_left_behind() -> None:
    event = publish("ledger:1", "message", 1)
    StoredEvent.objects.update(offset=None)  # as if the process had died between its commit and the numbering
    connection.cursor().execute("UPDATE hub_events_topichead SET offset = 0")
    StoredEvent.objects.update(time=datetime(2026, 1, 1, tzinfo=UTC))

    assert relay() == 1

    found, position = history("ledger:1")
    assert [(left.id, left.offset) for left in found] == [(event.id, 1)]
    assert position.epoch == current_epoch()


@pytest.mark.django_db(transaction=True)
def test_an_undeclared_topic_does_not_exist() -> None:
    with pytest.raises(UnknownTopic, match="nobody:declared"):
        publish("nobody:declared", "message", 1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("type", "data", "error"),
    [
        ("", 1, InvalidEvent),
        ("x" * 121, 1, InvalidEvent),
        ("a\nb", 1, InvalidEvent),
        ("message", object(), InvalidEvent),
        ("message", "x" * 65_536, EventTooLarge),
    ],
)
def test_an_event_that_cannot_be_is_refused_before_anything_is_written(
    type: str, data: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        publish_many([Publication("ledger:1", "message", 1), Publication("ledger:1", type, data)])

    assert history("ledger:1")[0] == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"type": "x"}, "the hub's own"),
        ({"id": "x"}, "the hub's own"),
        ({"": "x"}, "1 to 64 printable"),
        ({"a\nb": "x"}, "1 to 64 printable"),
        ({"k" * 65: "x"}, "1 to 64 printable"),
        ({7: "x"}, "1 to 64 printable"),
        ({"a": 7}, "at most 255"),
        ({"a": "x" * 256}, "at most 255"),
        ({"a": "\ud800"}, "no text"),
        ({str(number): "x" for number in range(33)}, "at most 32"),
        (["a"], "an object"),
    ],
)
def test_tags_that_cannot_be_are_refused(tags: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        publish("open:1", "message", 1, tags=tags)

    assert history("open:1")[0] == []


@pytest.mark.django_db(transaction=True)
def test_the_largest_tags_are_published() -> None:
    tags = {f"{number:064}": "ü" * 255 for number in range(32)}

    assert publish("open:1", "message", 1, tags=tags).tags == tags


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("topic", "version", "epoch", "message"),
    [
        ("fleeting:1", 1, "", "keeps no events"),
        ("open:1", -1, "", "a whole number"),
        ("open:1", 1.5, "", "a whole number"),
        ("open:1", True, "", "a whole number"),
        ("open:1", 2**63, "", "a whole number"),
        ("open:1", 1, "x" * 256, "at most 255"),
        ("open:1", 1, "a\0b", "printable"),
    ],
)
def test_a_version_that_cannot_be_is_refused(topic: str, version: Any, epoch: str, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        publish(topic, "message", 1, version=version, version_epoch=epoch)

    assert history(topic)[0] == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
def test_a_version_of_a_transaction_is_judged_at_its_commit(topic: str, published: PublishedEvents) -> None:
    with transaction.atomic():
        publish_many(
            [Publication(topic, "price", version, version=version, idempotency_key=f"{version}") for version in (2, 3)]
        )
        late = publish(topic, "price", "late", version=3)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish(topic, "price", "never", version=9)
        raise ZeroDivisionError
    repeated = publish(topic, "price", 3, version=3, idempotency_key="3")

    assert late.offset is None
    assert repeated.offset == 2
    assert [event.data for event in history(topic)[0]] == [2, 3]
    assert [event.data for event in published] == [2, 3]
    assert publish(topic, "price", 4, version=4).offset == 3


@pytest.mark.django_db(transaction=True)
def test_a_version_whose_process_died_is_judged_by_the_relay() -> None:
    publish("ledger:1", "price", "first", version=2)
    StoredEvent.objects.create(
        topic="ledger:1",
        type="price",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        encoded=encode(Event(topic="ledger:1", type="price", data="late")),
        version=1,
    )

    assert relay() == 0

    assert [event.data for event in history("ledger:1")[0]] == ["first"]
    assert StoredEvent.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_removal_in_a_transaction_of_a_durable_topic_happens_with_its_commit() -> None:
    publish("ledger:1", "message", 1)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        remove_history(topic="ledger:1")
        raise ZeroDivisionError
    rolled_back, _ = history("ledger:1")
    with transaction.atomic():
        remove_history(topic="ledger:1")
        publish("ledger:1", "message", 2)

    assert [event.data for event in rolled_back] == [1]
    assert [(event.data, event.offset) for event in history("ledger:1")[0]] == [(2, 2)]


async def test_there_is_no_history_to_remove_where_nothing_is_kept() -> None:
    with pytest.raises(NothingKept, match="fleeting:1"):
        await aremove_history(topic="fleeting:1")
    with pytest.raises(UnknownTopic):
        await aremove_history(topic="nobody:declared")
    with pytest.raises(InEventLoop, match="await aremove_history"):
        remove_history(topic="open:1")


@pytest.mark.django_db(transaction=True)
def test_the_largest_data_is_published() -> None:
    assert publish("open:1", "message", "x" * 65_534).offset == 1


async def test_publish_on_an_event_loop_names_apublish() -> None:
    with pytest.raises(InEventLoop, match="apublish"):
        publish("open:1", "message", 1)


@pytest.mark.django_db(transaction=True)
async def test_apublish_gives_the_offset() -> None:
    assert (await apublish("ledger:1", "message", 1)).offset == 1
    assert (await apublish("open:1", "message", 1)).offset == 1
    assert (await apublish("fleeting:1", "message", 1)).offset == 0


@pytest.mark.django_db(transaction=True)
def test_publish_many_keeps_the_order_of_what_it_was_given() -> None:
    events = publish_many(
        [Publication("open:1", "m", 1), Publication("ledger:1", "m", 2), Publication("open:1", "m", 3)]
    )

    assert [(event.topic, event.data, event.offset) for event in events] == [
        ("open:1", 1, 1),
        ("ledger:1", 2, 1),
        ("open:1", 3, 2),
    ]


@pytest.mark.django_db(transaction=True)
def test_without_redis_durable_events_are_kept_and_others_are_refused(settings: Settings) -> None:
    settings.HUB_REDIS_URL = url = f"redis://127.0.0.1:{free_port()}/0"
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": url}]},
        }
    }

    event = publish("ledger:1", "message", 1)

    assert event.offset == 1
    with pytest.raises(LogUnavailable):
        publish("open:1", "message", 1)


@pytest.mark.django_db(transaction=True)
def test_an_event_that_cannot_be_sent_after_a_commit_breaks_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.HUB_REDIS_URL = url = f"redis://127.0.0.1:{free_port()}/0"
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [{"address": url}]}}
    }
    called: list[str] = []

    with transaction.atomic():
        Group.objects.create(name="readers")
        publish("open:1", "message", 1)
        transaction.on_commit(lambda: called.append("after it"))

    assert Group.objects.filter(name="readers").exists()
    assert called == ["after it"]
    assert "PublishAfterCommit" in caplog.text


@pytest.mark.django_db
@pytest.mark.parametrize("topic", TOPICS)
def test_the_recorder_sees_events_that_wait_for_a_commit(topic: str, published: PublishedEvents) -> None:
    publish(topic, "order.shipped", {"carrier": "DHL"})

    assert published == [Event(topic=topic, type="order.shipped", data={"carrier": "DHL"})]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("topic", TOPICS)
def test_the_recorder_sees_each_committed_event_once(topic: str, published: PublishedEvents) -> None:
    publish(topic, "message", 1)
    with transaction.atomic():
        publish(topic, "message", 2)

    assert published == [Event(topic=topic, type="message", data=number) for number in (1, 2)]


@pytest.fixture
def bound_groups() -> Iterator[None]:
    binding = publishes(Group, topic="ledger:{pk}", fields=["name"], type="bound")
    yield
    binding.unbind()


@pytest.mark.django_db(transaction=True)
def test_a_bound_model_publishes_what_happens_to_its_rows(bound_groups: None, published: PublishedEvents) -> None:
    group = Group.objects.create(name="one")
    key = group.pk
    group.name = "two"
    group.save()
    group.delete()

    assert [event for event in published if event.type.startswith("bound.")] == [
        Event(topic=f"ledger:{key}", type="bound.created", data={"id": key, "name": "one"}, key=str(key)),
        Event(topic=f"ledger:{key}", type="bound.updated", data={"id": key, "name": "two"}, key=str(key)),
        Event(topic=f"ledger:{key}", type="bound.deleted", data={"id": key, "name": "two"}, key=str(key)),
    ]


@pytest.mark.django_db(transaction=True)
def test_a_bound_model_whose_save_is_rolled_back_publishes_nothing(
    bound_groups: None, published: PublishedEvents
) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Group.objects.create(name="one")
        raise ZeroDivisionError

    assert published == []


@pytest.mark.django_db(transaction=True)
def test_a_binding_never_breaks_the_save() -> None:
    binding = publishes(Group, topic="nobody:declared", type="broken")

    assert Group.objects.create(name="saved").pk is not None

    binding.unbind()


@pytest.mark.parametrize("wrong", [{"on": ["saved"]}, {"fields": ["nam"]}])
def test_a_binding_that_cannot_work_is_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="publishes"):
        publishes(Group, topic="ledger:{pk}", **wrong)  # type: ignore[arg-type]


def test_a_forked_process_makes_ids_of_its_own() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id(0).encode())
        os._exit(0)
    os.waitpid(child, 0)

    assert os.read(reading, 36).decode() != new_id(0)
