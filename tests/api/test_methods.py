"""The methods of the API, called through its ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from pytest_django import Settings

import notifications
from notifications.api.methods import METHODS
from notifications.delivery.switchboard import current_switchboard
from notifications.events import Event, Sender, apublish
from notifications.events.selectors import history
from notifications.events.threads import in_database_thread
from notifications.testing.client import HubClient
from notifications.testing.plugin import PublishedEvents
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]
TRANSPORT = {"X-Centrifugo-Error-Mode": "transport"}


async def call(api: httpx.AsyncClient, method: str, **request: Any) -> Any:
    """The answer of a method, which is 200 whether it succeeds or not."""
    answer = await api.post(f"/api/{method}", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


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
        ({"channel": "open:1"}, 107, "bad request: Object missing required field `data`"),
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
            {"channel": "open:1", "data": 1, "skip_history": True},
            108,
            "not available: open:1 keeps its events (window 10 events, 5 min)",
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


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
async def test_history_reads_what_is_kept(api: httpx.AsyncClient, topic: str) -> None:
    sender = Sender("7", "c", {"name": "Ana"})
    events = [await apublish(topic, "message", number) for number in (1, 2)]
    events.append(await apublish(topic, "order.paid", 3, key="k", sender=sender))
    epoch = events[0].epoch
    position = {"offset": 3, "epoch": epoch}
    third = {
        "data": 3,
        "offset": 3,
        "info": {"user": "7", "client": "c", "conn_info": {"name": "Ana"}},
        "tags": {"type": "order.paid", "id": events[2].id, "key": "k"},
    }
    second = {"data": 2, "offset": 2}

    async def read(**request: Any) -> Any:
        result = (await call(api, "history", channel=topic, **request))["result"]
        assert {name: result[name] for name in position} == position
        return result["publications"]

    assert await read() == []
    assert await read(limit=-1) == [{"data": 1, "offset": 1, "epoch": epoch}, second, third]
    assert await read(limit=2, since={"offset": 1, "epoch": epoch}) == [second, third]
    assert await read(limit=1, since={"offset": 1}) == [second]
    assert await read(limit=2, reverse=True) == [third, second]
    assert await read(limit=5, reverse=True, since={"offset": 3, "epoch": epoch}) == [
        second,
        {"data": 1, "offset": 1, "epoch": epoch},
    ]


async def test_history_is_bounded(api: httpx.AsyncClient, settings: Settings) -> None:
    settings.HUB_MAX_HISTORY = 2
    for number in range(3):
        await apublish("open:1", "message", number)

    for limit in (-1, 100):
        result = (await call(api, "history", channel="open:1", limit=limit))["result"]
        assert [publication["data"] for publication in result["publications"]] == [0, 1]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"channel": "nobody:declared"}, {"code": 102, "message": "unknown channel"}),
        ({"channel": "fleeting:1"}, {"code": 108, "message": "not available: fleeting:1 keeps no events"}),
        (
            {"channel": "open:1", "since": {"offset": 0, "epoch": "gone"}},
            {"code": 112, "message": "unrecoverable position"},
        ),
        (
            {"channel": "open:1", "limit": -2},
            {"code": 107, "message": "bad request: Expected `int` >= -1 - at `$.limit`"},
        ),
        (
            {"channel": "ledger:1", "since": {"offset": 10**30}},
            {"code": 107, "message": "bad request: Expected `int` <= 9223372036854775807 - at `$.since.offset`"},
        ),
    ],
)
async def test_history_that_cannot_be_read(
    api: httpx.AsyncClient, request_: dict[str, Any], error: dict[str, Any]
) -> None:
    assert await call(api, "history", **request_) == {"error": error}


async def test_presence_lists_clients_and_users(api: httpx.AsyncClient, hub_client: Connect) -> None:
    ana = await User.objects.acreate_user("ana", first_name="Ana")
    clients = [await hub_client(ana), await hub_client(ana), await hub_client()]
    for client in clients:
        await client.subscribe("open:1")
        await asyncio.sleep(0)
    info = {"user": str(ana.pk), "conn_info": {"name": "Ana"}}

    answer = await call(api, "presence", channel="open:1")

    signed_in, again, visitor = (client.session.id for client in clients)
    assert answer == {
        "result": {
            "presence": {
                signed_in: {**info, "client": signed_in},
                again: {**info, "client": again},
                visitor: {"client": visitor, "user": ""},
            }
        }
    }
    assert await call(api, "presence_stats", channel="open:1") == {"result": {"num_clients": 3, "num_users": 2}}
    assert await call(api, "presence_stats", channel="open:2") == {"result": {"num_clients": 0, "num_users": 0}}
    assert await call(api, "presence", channel="open:2") == {"result": {"presence": {}}}
    assert await call(api, "presence", channel="ledger:1") == {
        "error": {"code": 108, "message": "not available: ledger:1 does not list its subscribers"}
    }


async def test_channels_and_info_count_what_is_subscribed(api: httpx.AsyncClient, hub_client: Connect) -> None:
    first, second = await hub_client(), await hub_client()
    for topic in ("open:1", "open:2", "ledger:1"):
        await first.subscribe(topic)
    await second.subscribe("open:1")
    switchboard = await current_switchboard()
    await switchboard.housekeeping.renew_lease()

    assert await call(api, "channels") == {
        "result": {
            "channels": {
                "ledger:1": {"num_clients": 1},
                "open:1": {"num_clients": 2},
                "open:2": {"num_clients": 1},
            }
        }
    }
    assert await call(api, "channels", pattern="*:2") == {"result": {"channels": {"open:2": {"num_clients": 1}}}}
    (node,) = (await call(api, "info"))["result"]["nodes"]
    assert node.pop("name")
    assert node.pop("uptime") in (0, 1)
    assert node == {
        "uid": switchboard.node,
        "version": notifications.__version__,
        "num_clients": 2,
        "num_users": 1,
        "num_subs": 4,
        "num_channels": 3,
    }


async def test_an_unreachable_log_is_a_temporary_error(api: httpx.AsyncClient, settings: Settings) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"
    error = {"error": {"code": 100, "message": "internal server error"}}

    for method, request in (
        ("publish", {"channel": "fleeting:1", "data": 1}),
        ("history", {"channel": "open:1"}),
        ("presence", {"channel": "open:1"}),
        ("channels", {}),
        ("info", {}),
    ):
        assert await call(api, method, **request) == error
        answer = await api.post(f"/api/{method}", json=request, headers=TRANSPORT)
        assert (answer.status_code, answer.json()) == (503, error)


@pytest.mark.parametrize(
    ("method", "request_", "status", "code"),
    [
        ("publish", {"channel": "nobody:declared", "data": 1}, 404, 102),
        ("publish", {"channel": "open:1"}, 400, 107),
        ("history", {"channel": "fleeting:1"}, 400, 108),
        ("history", {"channel": "open:1", "since": {"epoch": "gone"}}, 416, 112),
        ("publish", {"channel": "open:1", "data": 1}, 200, None),
    ],
)
async def test_errors_have_http_statuses_on_request(
    api: httpx.AsyncClient, method: str, request_: dict[str, Any], status: int, code: int | None
) -> None:
    answer = await api.post(f"/api/{method}", json=request_, headers=TRANSPORT)

    assert answer.status_code == status
    assert answer.json().get("error", {}).get("code") == code


async def test_the_older_form_names_the_method_in_the_body(api: httpx.AsyncClient) -> None:
    body = {"method": "publish", "params": {"channel": "open:1", "data": 1}}

    assert (await api.post("/api", json=body)).json()["result"]["offset"] == 1
    assert (await api.post("/api/", json={"method": "info"})).json() == {"result": {"nodes": []}}
    unknown = await api.post("/api", json={"method": "refresh", "params": {}})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, 104)
    assert (await api.post("/api", json={"method": "publish", "params": [1]})).json() == {
        "error": {"code": 107, "message": "bad request: Expected `object`, got `array`"}
    }


async def test_every_example_of_the_documentation_works(api: httpx.AsyncClient) -> None:
    for method in METHODS.values():
        assert list(await call(api, method.name, **method.example)) == ["result"], method.name


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
