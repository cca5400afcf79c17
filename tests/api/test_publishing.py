"""The methods of the API that publish, called through its ASGI application."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from pytest_django import Settings

from notifications.events import Event
from notifications.events.selectors import history
from notifications.events.threads import in_database_thread
from notifications.testing.client import HubClient
from notifications.testing.plugin import PublishedEvents
from tests.api.conftest import call

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


async def test_publish_reaches_the_log_and_the_subscribers(api: httpx.AsyncClient, hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")

    answer = await call(api, "publish", channel="open:1", data={"amount": 12}, type="order.paid", key="42")

    epoch = answer["result"]["epoch"]
    assert answer == {"result": {"offset": 1, "epoch": epoch}}
    publication = await client.next_publication("open:1")
    assert publication.pop("tags") == {"type": "order.paid", "key": "42", "id": history("open:1")[0][0].id}
    assert publication == {"data": {"amount": 12}, "offset": 1, "epoch": epoch}


async def test_publish_to_a_durable_topic_is_numbered_at_once(api: httpx.AsyncClient) -> None:
    first = await call(api, "publish", channel="ledger:1", data=1)
    second = await call(api, "publish", channel="ledger:1", data=2)

    assert [first["result"]["offset"], second["result"]["offset"]] == [1, 2]
    assert first["result"]["epoch"] == second["result"]["epoch"] != ""


async def test_publish_to_a_topic_that_keeps_nothing_has_no_offset(api: httpx.AsyncClient) -> None:
    assert await call(api, "publish", channel="fleeting:1", data=1, skip_history=True) == {
        "result": {"offset": 0, "epoch": ""}
    }


async def test_an_event_may_skip_the_history(api: httpx.AsyncClient) -> None:
    kept = await call(api, "publish", channel="open:1", data=1)
    skipped = await call(api, "publish", channel="open:1", data=2, skip_history=True)

    assert skipped == {"result": {"offset": 0, "epoch": ""}}
    history = (await call(api, "history", channel="open:1", limit=-1))["result"]
    assert [publication["data"] for publication in history["publications"]] == [1]
    assert history["offset"] == kept["result"]["offset"] == 1


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False, {"ä": ["\n", 1.5, {"deep": None}]}])
async def test_data_is_any_json(api: httpx.AsyncClient, published: PublishedEvents, data: object) -> None:
    answer = await call(api, "publish", channel="open:1", data=data)

    assert answer["result"]["offset"] == 1
    assert published == [Event(topic="open:1", type="message", data=data)]


async def test_a_topic_has_a_default_type_and_tags_name_another(
    api: httpx.AsyncClient, published: PublishedEvents
) -> None:
    await call(api, "publish", channel="chat:a", data={"message": "hi"})
    await call(api, "publish", channel="open:1", data=1, tags={"type": "a.b", "key": "k", "other": "x"})
    await call(api, "publish", channel="open:1", data=2, tags={"type": "a.b"}, type="c.d")

    assert published == [
        Event(topic="chat:a", type="chat.message", data={"message": "hi"}),
        Event(topic="open:1", type="a.b", data=1, key="k"),
        Event(topic="open:1", type="c.d", data=2),
    ]
    assert [event.tags for event in published] == [None, {"key": "k", "other": "x"}, None]


async def test_an_older_version_is_not_published(api: httpx.AsyncClient, published: PublishedEvents) -> None:
    for version, epoch in ((3, "a"), (2, "a"), (3, "a"), (1, "b"), (4, "a")):
        await call(api, "publish", channel="open:1", data=[version, epoch], version=version, version_epoch=epoch)

    assert [event.data for event in published] == [[3, "a"], [1, "b"], [4, "a"]]


@pytest.mark.parametrize("data", [None, 0, "ä", {"amount": [1.5]}])
async def test_data_may_come_in_base64(api: httpx.AsyncClient, published: PublishedEvents, data: object) -> None:
    encoded = base64.b64encode(json.dumps(data, indent=1).encode()).decode()

    answer = await call(api, "publish", channel="open:1", b64data=encoded, data="not this")

    assert answer["result"]["offset"] == 1
    assert published == [Event(topic="open:1", type="message", data=data)]


@pytest.mark.parametrize(
    ("b64data", "message"),
    [
        ("%%%", "b64data is not the base64 of JSON: Only base64 data is allowed"),
        ("ä", "b64data is not the base64 of JSON: string argument should contain only ASCII characters"),
        (
            base64.b64encode(b"plain text").decode(),
            "b64data is not the base64 of JSON: JSON is malformed: invalid character (byte 0)",
        ),
        (base64.b64encode(b"[" * 33 + b"]" * 33).decode(), "b64data nests deeper than 32 levels"),
    ],
)
async def test_base64_of_what_is_not_json_is_refused(
    api: httpx.AsyncClient, published: PublishedEvents, b64data: str, message: str
) -> None:
    for method, request in (("publish", {"channel": "open:1"}), ("broadcast", {"channels": ["open:1"]})):
        answer = await call(api, method, **request, b64data=b64data)
        assert answer == {"error": {"code": 107, "message": f"bad request: {message}"}}
    assert published == []


async def test_a_field_that_is_not_known_changes_nothing(api: httpx.AsyncClient, published: PublishedEvents) -> None:
    answer = await call(api, "publish", channel="open:1", data=1, delta=True, exclude="me", later={"than": "this"})

    assert answer["result"]["offset"] == 1
    assert published == [Event(topic="open:1", type="message", data=1)]


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
async def test_a_repetition_is_not_published_again(
    api: httpx.AsyncClient, published: PublishedEvents, topic: str
) -> None:
    first = await call(api, "publish", channel=topic, data=1, idempotency_key="once")
    again = await call(api, "publish", channel=topic, data=2, idempotency_key="once")

    assert again == first
    assert published == [Event(topic=topic, type="message", data=1)]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        ({"channel": "open:1"}, 107, "bad request: give data, or b64data"),
        ({"data": 1}, 107, "bad request: Object missing required field `channel`"),
        ({"channel": "", "data": 1}, 107, "bad request: Expected `str` of length >= 1 - at `$.channel`"),
        ({"channel": 5, "data": 1}, 107, "bad request: Expected `str`, got `int` - at `$.channel`"),
        (
            {"channel": "o" * 256, "data": 1},
            107,
            "bad request: Expected `str` of length <= 255 - at `$.channel`",
        ),
        ({"channel": "nobody:declared", "data": 1}, 102, "unknown channel"),
        ({"channel": "open:a\nb", "data": 1}, 102, "unknown channel"),
        (
            {"channel": "ledger:1", "data": 1, "skip_history": True},
            107,
            "bad request: 'ledger:1' (durable 30 d) keeps this event: it is durable, or has a version",
        ),
        (
            {"channel": "open:1", "data": 1, "type": "a\nb"},
            107,
            "bad request: an event's type is 1 to 120 printable characters, not 'a\\nb'",
        ),
        (
            {"channel": "open:1", "data": 1, "idempotency_key": "k" * 256},
            107,
            "bad request: an idempotency key is text of 1 to 255 printable characters",
        ),
        (
            {"channel": "chat:a", "data": {"text": "hi"}},
            107,
            "bad request: data of 'chat.message' on 'chat:a': Object missing required field `message`",
        ),
    ],
)
async def test_what_cannot_be_published_is_refused(
    api: httpx.AsyncClient, published: PublishedEvents, request_: dict[str, Any], code: int, message: str
) -> None:
    assert await call(api, "publish", **request_) == {"error": {"code": code, "message": message}}
    assert published == []


async def test_data_may_be_as_large_as_the_setting_says(
    api: httpx.AsyncClient, published: PublishedEvents, settings: Settings
) -> None:
    settings.HUB_MAX_DATA_BYTES = 100

    most = await call(api, "publish", channel="open:1", data="x" * 98)
    too_much = await call(api, "publish", channel="open:1", data="x" * 99)

    assert most["result"]["offset"] == 1
    assert too_much == {
        "error": {
            "code": 107,
            "message": "bad request: data is 101 bytes of JSON; HUB_MAX_DATA_BYTES allows 100",
        }
    }
    assert len(published) == 1


async def test_broadcast_answers_for_each_topic(api: httpx.AsyncClient, published: PublishedEvents) -> None:
    channels = ["open:1", "nobody:declared", "ledger:1"]

    answer = await call(api, "broadcast", channels=channels, data={"n": 1}, type="a.b")

    responses = answer["result"]["responses"]
    assert responses[0]["result"]["offset"] == 1
    assert responses[1] == {"error": {"code": 102, "message": "unknown channel"}}
    assert responses[2]["result"]["offset"] == 1
    assert sorted(event.topic for event in published) == ["ledger:1", "open:1"]
    assert {(event.type, str(event.data)) for event in published} == {("a.b", "{'n': 1}")}


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], "bad request: Expected `array` of length >= 1 - at `$.channels`"),
        ("open:1", "bad request: Expected `array`, got `str` - at `$.channels`"),
        ([""], "bad request: Expected `str` of length >= 1 - at `$.channels[0]`"),
    ],
)
async def test_broadcast_needs_names_of_topics(api: httpx.AsyncClient, channels: object, message: str) -> None:
    assert await call(api, "broadcast", channels=channels, data=1) == {"error": {"code": 107, "message": message}}


async def test_a_broadcast_has_a_bounded_number_of_topics(
    api: httpx.AsyncClient, published: PublishedEvents, settings: Settings
) -> None:
    settings.HUB_MAX_BATCH = 2

    most = await call(api, "broadcast", channels=["open:1", "open:2"], data=1)
    too_many = await call(api, "broadcast", channels=["open:1", "open:2", "open:3"], data=2)

    assert len(most["result"]["responses"]) == 2
    assert too_many == {"error": {"code": 106, "message": "limit exceeded: 3 topics; HUB_MAX_BATCH allows 2"}}
    assert [event.data for event in published] == [1, 1]


CLOUD_EVENT = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid", "subject": "open:1"}


async def post_cloud_event(api: httpx.AsyncClient, **attributes: Any) -> Any:
    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    return (await api.post("/api/publish", json={**CLOUD_EVENT, **attributes}, headers=headers)).json()


async def test_a_cloud_event_is_published_once(api: httpx.AsyncClient, published: PublishedEvents) -> None:
    first = await post_cloud_event(api, data={"amount": 12}, partitionkey="42")
    again = await post_cloud_event(api, data={"amount": 12}, partitionkey="42")
    other_source = await post_cloud_event(api, source="/other", topic="ledger:1")

    assert first["result"]["offset"] == 1
    assert again == first
    assert other_source["result"]["offset"] == 1
    assert published == [
        Event(topic="open:1", type="order.paid", data={"amount": 12}, key="42"),
        Event(topic="ledger:1", type="order.paid", data=None),
    ]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"specversion": "0.3"}, "not a CloudEvent: Invalid enum value '0.3' - at `$.specversion`"),
        ({"id": ""}, "not a CloudEvent: Expected `str` of length >= 1 - at `$.id`"),
        ({"subject": ""}, "the CloudEvent names no topic: set subject, or the extension topic"),
        ({"data_base64": "aGk="}, "data_base64 is binary, and an event's data is JSON: use data"),
    ],
)
async def test_what_is_no_cloud_event_is_refused(
    api: httpx.AsyncClient, published: PublishedEvents, attributes: dict[str, Any], message: str
) -> None:
    answer = await post_cloud_event(api, **attributes)

    assert answer == {"error": {"code": 107, "message": f"bad request: {message}"}}
    assert published == []


async def test_publishing_continues_while_the_loop_is_busy_with_many(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(call(api, "publish", channel="ledger:1", data=n) for n in range(20)))

    assert sorted(answer["result"]["offset"] for answer in answers) == list(range(1, 21))
    events, _ = await in_database_thread(history, "ledger:1")
    assert sorted(event.data for event in events) == list(range(20))
