"""Several methods in one request, and functions of apps."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from pytest_django import Settings

from notifications.api.methods import COMMANDS
from notifications.testing.plugin import PublishedEvents

pytestmark = pytest.mark.django_db(transaction=True)


async def replies(api: httpx.AsyncClient, *commands: object, **options: object) -> list[Any]:
    """The replies of a batch, which stand alone in its answer."""
    answer = await api.post("/api/batch", json={"commands": commands, **options})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["replies"]
    found: list[Any] = answer.json()["replies"]
    return found


@pytest.mark.parametrize("parallel", [False, True])
async def test_every_command_has_its_own_reply(
    api: httpx.AsyncClient, published: PublishedEvents, parallel: bool
) -> None:
    publish, broadcast, unknown_topic, stats, bad, not_an_object, no_method = await replies(
        api,
        {"publish": {"channel": "open:1", "data": 1}},
        {"broadcast": {"channels": ["open:2", "nobody:declared"], "data": 2}},
        {"publish": {"channel": "nobody:declared", "data": 3}},
        {"presence_stats": {"channel": "open:1"}},
        {"publish": {"data": 4}},
        {"publish": 5},
        {"batch": {"commands": []}},
        parallel=parallel,
    )

    assert publish == {"publish": {"offset": 1, "epoch": publish["publish"]["epoch"]}}
    first, second = broadcast["broadcast"]["responses"]
    assert first["result"]["offset"] == 1
    assert second == unknown_topic == {"error": {"code": 102, "message": "unknown channel"}}
    assert stats == {"presence_stats": {"num_clients": 0, "num_users": 0}}
    assert bad == {"error": {"code": 107, "message": "bad request: Object missing required field `channel`"}}
    assert not_an_object == {"error": {"code": 107, "message": "bad request: Expected `object`, got `int`"}}
    assert no_method == {"error": {"code": 104, "message": "method not found: a command is {method: request}"}}
    assert sorted(event.data for event in published) == [1, 2]


async def test_commands_are_called_in_their_order(api: httpx.AsyncClient, published: PublishedEvents) -> None:
    commands = [{"publish": {"channel": "ledger:1", "data": number}} for number in range(40)]

    answers = await replies(api, *commands)

    assert [answer["publish"]["offset"] for answer in answers] == list(range(1, 41))
    assert [event.data for event in published] == list(range(40))


async def test_a_batch_may_be_empty(api: httpx.AsyncClient) -> None:
    assert await replies(api) == []


@pytest.mark.parametrize("method", [method.name for method in COMMANDS])
async def test_every_method_may_be_in_a_batch(api: httpx.AsyncClient, price: str, method: str) -> None:
    (example,) = [known.example for known in COMMANDS if known.name == method]

    (reply,) = await replies(api, {method: example, "unknown": {}})

    assert list(reply) == [method]


async def test_a_batch_has_a_bounded_number_of_commands(
    api: httpx.AsyncClient, published: PublishedEvents, settings: Settings
) -> None:
    settings.HUB_MAX_BATCH = 2
    command = {"publish": {"channel": "open:1", "data": 1}}

    assert len(await replies(api, command, command)) == 2
    answer = await api.post("/api/batch", json={"commands": [command] * 3})

    assert answer.json() == {"error": {"code": 106, "message": "limit exceeded: 3 commands; HUB_MAX_BATCH allows 2"}}
    assert len(published) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Object missing required field `commands`"),
        ({"commands": {}}, "Expected `array`, got `object` - at `$.commands`"),
        ({"commands": [1]}, "Expected `object`, got `int` - at `$.commands[0]`"),
    ],
)
async def test_what_is_no_batch_is_refused(api: httpx.AsyncClient, body: dict[str, Any], message: str) -> None:
    answer = await api.post("/api/batch", json=body, headers={"X-Centrifugo-Error-Mode": "transport"})

    assert (answer.status_code, answer.json()) == (400, {"error": {"code": 107, "message": f"bad request: {message}"}})


async def test_commands_of_a_batch_are_counted(api: httpx.AsyncClient) -> None:
    def counted(method: str, code: str) -> float:
        labels = {"method": method, "code": code}
        return REGISTRY.get_sample_value("hub_api_requests_total", labels) or 0

    before = [counted("info", "0"), counted("history", "102"), counted("batch", "0")]

    await replies(api, {"info": {}}, {"info": {}}, {"history": {"channel": "nobody:declared"}})

    after = [counted("info", "0"), counted("history", "102"), counted("batch", "0")]
    assert [new - old for old, new in zip(before, after, strict=True)] == [2, 1, 1]


async def test_a_key_for_everything_calls_functions_as_nobody(api: httpx.AsyncClient, price: str) -> None:
    answer = await api.post("/api/rpc", json={"method": price, "params": {"product": 7}})

    assert answer.json() == {"result": {"data": {"price": 700, "user": "", "client": ""}}}


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"method": "shop.stock"}, 404, 104, "method not found: no app has registered 'shop.stock'"),
        ({"method": ""}, 400, 107, "bad request: Expected `str` of length >= 1 - at `$.method`"),
        ({"method": "shop.price"}, 400, 107, "bad request: Expected `object`, got `null`"),
        (
            {"method": "shop.price", "params": {"product": "x"}},
            400,
            107,
            "bad request: Expected `int`, got `str` - at `$[...]`",
        ),
        ({"method": "shop.price", "params": {}}, 500, 100, "internal server error"),
    ],
)
async def test_functions_that_cannot_be_called(
    api: httpx.AsyncClient, price: str, body: dict[str, Any], status: int, code: int, message: str
) -> None:
    answer = await api.post("/api/rpc", json=body, headers={"X-Centrifugo-Error-Mode": "transport"})

    assert (answer.status_code, answer.json()) == (status, {"error": {"code": code, "message": message}})


async def test_the_openapi_document_describes_what_a_batch_is_made_of(stranger: httpx.AsyncClient) -> None:
    schemas = (await stranger.get("/api/openapi.json")).json()["components"]["schemas"]

    request, result = schemas["BatchRequest"]["properties"], schemas["BatchResult"]["properties"]
    assert request["commands"]["items"]["$ref"] == "#/components/schemas/Command"
    assert result["replies"]["items"]["$ref"] == "#/components/schemas/Reply"
    names = [method.name for method in COMMANDS]
    assert [choice["required"] for choice in schemas["Command"]["oneOf"]] == [[name] for name in names]
    assert [choice["required"] for choice in schemas["Reply"]["oneOf"]] == [[name] for name in [*names, "error"]]
    assert schemas["Command"]["oneOf"][0]["properties"] == {"publish": {"$ref": "#/components/schemas/PublishRequest"}}
