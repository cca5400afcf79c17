from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

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
from notifications.events.exceptions import EventTooLarge, InEventLoop, InvalidEvent, LogUnavailable, UnknownTopic
from notifications.events.logs.database import current_epoch, relay
from notifications.events.models import StoredEvent
from notifications.events.selectors import history
from notifications.events.services import apublish_encoded
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
