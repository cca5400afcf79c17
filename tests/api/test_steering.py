"""The methods that act on connected clients: what their clients see."""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from pytest_django import Settings

from notifications.audit.models import AuditEntry
from notifications.delivery.codes import Code
from notifications.events import apublish
from notifications.testing.client import HubClient
from tests.api.conftest import call
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]
DONE = {"result": {}}


@pytest.fixture
async def ana() -> User:
    return await User.objects.acreate_user("ana", first_name="Ana")


async def nothing_but(client: HubClient, topic: str, api: httpx.AsyncClient) -> None:
    """Fail unless the next push of a client is of an event on `topic` that is published now."""
    await call(api, "publish", channel=topic, data="a mark")
    push = await client.next_push()
    assert (push["channel"], push["pub"]["data"]) == (topic, "a mark")


async def test_all_connections_of_a_user_are_subscribed(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    first, second, visitor = await hub_client(ana), await hub_client(ana), await hub_client()
    await visitor.subscribe("open:mark")

    # Whose permission would not be given to her.
    assert await call(api, "subscribe", user=str(ana.pk), channel="chat:secret", data={"n": 1}) == DONE

    for client in (first, second):
        push = await client.next_push()
        assert push["channel"] == "chat:secret"
        assert push["subscribe"]["data"] == {"n": 1}
        assert push["subscribe"]["recoverable"] is True
    await call(api, "publish", channel="chat:secret", data={"message": "hi"})
    for client in (first, second):
        assert (await client.next_publication("chat:secret"))["data"] == {"message": "hi"}
    await nothing_but(visitor, "open:mark", api)


async def test_one_client_is_subscribed(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    chosen, other = await hub_client(ana), await hub_client(ana)
    await other.subscribe("open:mark")

    assert await call(api, "subscribe", client=chosen.session.id, channel="open:1") == DONE

    assert (await chosen.next_push())["channel"] == "open:1"
    await nothing_but(other, "open:mark", api)


async def test_a_client_of_another_user_is_not_subscribed(
    api: httpx.AsyncClient, hub_client: Connect, ana: User
) -> None:
    visitor = await hub_client()
    await visitor.subscribe("open:mark")

    assert await call(api, "subscribe", user=str(ana.pk), client=visitor.session.id, channel="open:1") == DONE

    await nothing_but(visitor, "open:mark", api)


@pytest.mark.parametrize(
    "info", [{"info": {"role": "guest"}}, {"b64info": base64.b64encode(b'{"role": "guest"}').decode()}]
)
async def test_a_subscription_may_say_something_of_its_own(
    api: httpx.AsyncClient, hub_client: Connect, ana: User, info: dict[str, Any]
) -> None:
    client = await hub_client(ana)

    await call(api, "subscribe", user=str(ana.pk), channel="open:1", **info)

    assert (await client.next_push())["channel"] == "open:1"
    presence = (await call(api, "presence", channel="open:1"))["result"]["presence"]
    assert presence == {
        client.session.id: {
            "client": client.session.id,
            "user": str(ana.pk),
            "conn_info": {"name": "Ana"},
            "chan_info": {"role": "guest"},
        }
    }


async def test_a_subscription_recovers_what_was_missed(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    events = [await apublish("open:1", "message", number) for number in (1, 2, 3)]
    client = await hub_client(ana)
    since = {"offset": 1, "epoch": events[0].epoch}

    await call(api, "subscribe", user=str(ana.pk), channel="open:1", recover_since=since)

    missed = [await client.next_publication("open:1") for _ in range(2)]
    assert [(publication["offset"], publication["data"]) for publication in missed] == [(2, 2), (3, 3)]


async def test_a_subscription_of_the_server_is_ended(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    client, other = await hub_client(ana), await hub_client()
    for subscriber in (client, other):
        await subscriber.subscribe("open:1")
        await subscriber.subscribe("open:mark")

    assert await call(api, "unsubscribe", user=str(ana.pk), channel="open:1") == DONE

    while "unsubscribe" not in (push := await client.next_push()):
        assert "join" in push
    assert push == {"channel": "open:1", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
    await call(api, "publish", channel="open:1", data="for others")
    await nothing_but(client, "open:mark", api)
    assert (await other.next_publication("open:1"))["data"] == "for others"


async def test_all_connections_of_a_user_are_closed_but_those_that_stay(
    api: httpx.AsyncClient, hub_client: Connect, ana: User
) -> None:
    closed, kept, visitor = await hub_client(ana), await hub_client(ana), await hub_client()

    assert await call(api, "disconnect", user=str(ana.pk), whitelist=[kept.session.id]) == DONE

    assert await closed.closed_by_hub() == Code(3503, "force disconnect")
    assert (kept.open, visitor.open) == (True, True)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"code": 4500, "reason": "gone"}, Code(4500, "gone")),
        ({"code": 4500}, Code(4500, "force disconnect")),
        ({"code": 0, "reason": ""}, Code(3503, "force disconnect")),
        ({"code": 3000, "reason": "ä" * 61}, Code(3000, "ä" * 61)),
    ],
)
async def test_a_connection_is_closed_with_the_code_that_was_asked_for(
    api: httpx.AsyncClient, hub_client: Connect, asked: dict[str, Any], code: Code
) -> None:
    client = await hub_client()

    assert await call(api, "disconnect", client=client.session.id, disconnect=asked) == DONE

    assert await client.closed_by_hub() == code


async def test_who_closed_a_connection_is_in_the_audit_log(api: httpx.AsyncClient, ana: User) -> None:
    await call(api, "disconnect", user=str(ana.pk), whitelist=["a-client"])

    entry = await AuditEntry.objects.aget()
    assert (entry.action, entry.actor_name, entry.address) == ("session.ended", "API key of HUB_API_KEYS", "127.0.0.1")
    assert (entry.subject, entry.details["kept"]) == (f"user {ana.pk}", ["a-client"])


async def test_a_connection_that_has_expired_is_closed(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    client, visitor = await hub_client(ana), await hub_client()

    assert await call(api, "refresh", user=str(ana.pk), expired=True) == DONE

    assert await client.closed_by_hub() == Code(3005, "connection expired")
    assert visitor.open


async def test_a_connection_is_told_when_it_expires(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    client = await hub_client(ana)

    assert await call(api, "refresh", user=str(ana.pk), expire_at=int(time.time()) + 600) == DONE

    push = await client.next_push()
    assert push["refresh"]["expires"] is True
    assert 598 <= push["refresh"]["ttl"] <= 601


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "disconnect", "refresh"])
async def test_somebody_has_to_be_named(api: httpx.AsyncClient, hub_client: Connect, method: str) -> None:
    visitor = await hub_client()
    error = {"error": {"code": 107, "message": "bad request: name a user, a client or a session"}}

    for named in ({}, {"user": ""}, {"user": "", "client": "", "session": None}):
        assert await call(api, method, channel="open:1", **named) == error

    assert visitor.open


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "disconnect", "refresh"])
@pytest.mark.parametrize("named", [{"user": "nobody"}, {"client": "nobody"}, {"session": "nobody"}])
async def test_who_is_not_connected_is_no_error(api: httpx.AsyncClient, method: str, named: dict[str, str]) -> None:
    assert await call(api, method, channel="open:1", **named) == DONE


@pytest.mark.parametrize(
    ("method", "request_", "code", "message"),
    [
        ("subscribe", {}, 107, "bad request: Object missing required field `channel`"),
        ("subscribe", {"channel": "nobody:declared"}, 102, "unknown channel"),
        (
            "subscribe",
            {"channel": "open:1", "b64data": "x"},
            107,
            "bad request: b64data is not the base64 of JSON: Invalid base64-encoded string: number of data characters "
            "(1) cannot be 1 more than a multiple of 4",
        ),
        (
            "subscribe",
            {"channel": "open:1", "data": 2**64},
            107,
            "bad request: data: can't serialize ints < -2**63 or > 2**64 - 1",
        ),
        (
            "subscribe",
            {"channel": "open:1", "info": "x" * 65_536},
            107,
            "bad request: info: data is 65538 bytes of JSON; HUB_MAX_DATA_BYTES allows 65536",
        ),
        (
            "subscribe",
            {"channel": "open:1", "expire_at": -1},
            107,
            "bad request: Expected `int` >= 0 - at `$.expire_at`",
        ),
        ("unsubscribe", {"channel": "nobody:declared"}, 102, "unknown channel"),
        (
            "disconnect",
            {"disconnect": {"code": 2999}},
            107,
            "bad request: a connection is closed with a code from 3000 to 4999",
        ),
        (
            "disconnect",
            {"disconnect": {"code": 5000}},
            107,
            "bad request: Expected `int` <= 4999 - at `$.disconnect.code`",
        ),
        (
            "disconnect",
            {"disconnect": {"code": 4000, "reason": "ä" * 62}},
            107,
            "bad request: the reason has more than 123 bytes",
        ),
        ("refresh", {"expire_at": 2**53}, 107, "bad request: Expected `int` <= 9007199254740991 - at `$.expire_at`"),
    ],
)
async def test_what_cannot_be_asked_is_refused(
    api: httpx.AsyncClient, method: str, request_: dict[str, Any], code: int, message: str
) -> None:
    assert await call(api, method, user="7", **request_) == {"error": {"code": code, "message": message}}


async def test_options_of_a_topic_are_not_overridden(api: httpx.AsyncClient, hub_client: Connect, ana: User) -> None:
    client = await hub_client(ana)
    override = {"presence": {"value": False}, "force_recovery": {"value": True}}

    await call(api, "subscribe", user=str(ana.pk), channel="open:1", override=override)

    assert (await client.next_push())["channel"] == "open:1"
    stats = (await call(api, "presence_stats", channel="open:1"))["result"]
    assert stats == {"num_clients": 1, "num_users": 1}


async def test_a_layer_that_cannot_be_reached_is_told(api: httpx.AsyncClient, settings: Settings) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "notifications.events.redis_layer.RedisChannelLayer",
            "CONFIG": {"hosts": [settings.HUB_REDIS_URL]},
        }
    }

    error = {"error": {"code": 100, "message": "internal server error"}}
    transport = {"X-Centrifugo-Error-Mode": "transport"}

    for method in ("subscribe", "unsubscribe", "disconnect", "refresh"):
        answer = await api.post(f"/api/{method}", json={"channel": "open:1", "user": "7"}, headers=transport)
        assert (answer.status_code, answer.json()) == (503, error)
