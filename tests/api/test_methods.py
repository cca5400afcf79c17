"""The methods of the API that read, and what all methods have in common, called through its ASGI application."""

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
from notifications.events import Sender, apublish
from notifications.testing.client import HubClient
from tests.api.conftest import call
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]
TRANSPORT = {"X-Centrifugo-Error-Mode": "transport"}


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


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
async def test_history_that_is_removed_leaves_the_position(api: httpx.AsyncClient, topic: str) -> None:
    for number in (1, 2):
        await apublish(topic, "message", number)
    position = (await call(api, "history", channel=topic))["result"]

    assert await call(api, "history_remove", channel=topic) == {"result": {}}

    assert (await call(api, "history", channel=topic, limit=-1))["result"] == position
    assert (await call(api, "publish", channel=topic, data=3))["result"]["offset"] == 3


async def test_a_topic_without_history_has_none_to_remove(api: httpx.AsyncClient) -> None:
    assert await call(api, "history_remove", channel="fleeting:1") == {
        "error": {"code": 108, "message": "not available: fleeting:1 keeps no events"}
    }
    assert await call(api, "history_remove", channel="nobody:declared") == {
        "error": {"code": 102, "message": "unknown channel"}
    }


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
        ("history_remove", {"channel": "open:1"}),
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
    unknown = await api.post("/api", json={"method": "connections", "params": {}})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, 104)
    assert (await api.post("/api", json={"method": "publish", "params": [1]})).json() == {
        "error": {"code": 107, "message": "bad request: Expected `object`, got `array`"}
    }


async def test_every_example_of_the_documentation_works(api: httpx.AsyncClient, price: str) -> None:
    for method in METHODS.values():
        answer = (await api.post(f"/api/{method.name}", json=method.example)).json()
        assert list(answer) == ["result" if method.wrapped else "replies"], method.name
