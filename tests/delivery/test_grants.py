"""Subscriptions by token and by the server, what expires, and what a session may cost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import jwt
import pytest
from django.contrib.auth.models import User
from pytest_django import Settings

from notifications.delivery import codes, control
from notifications.delivery.identity import Identity
from notifications.delivery.signals import client_message
from notifications.delivery.switchboard import current_switchboard
from notifications.delivery.tokens import connection_token, subscription_token
from notifications.events import Cursor, Topic, apublish, window
from notifications.events.topics import registry
from notifications.testing.client import ErrorReply, HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_EXPIRED_SECONDS = 0


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    class Vault(Topic):
        """Nobody may do anything here by their own right."""

        pattern = "vault:<name>"
        retention = window(size=10, seconds=300)
        presence = join_leave = True
        subscribers_may = frozenset({"publish", "presence"})

    class Price(Topic):
        pattern = "price:<name>"
        retention = window(size=10, seconds=300)
        recovery = "cache"

        def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
            return True

    for declaration in (Vault, Price):
        registry.register(declaration)
    yield
    for declaration in (Vault, Price):
        registry.unregister(declaration)


@pytest.fixture
async def ana() -> User:
    return await User.objects.acreate_user("ana", first_name="Ana")


def signed(settings: Settings, **claims: Any) -> str:
    return jwt.encode(claims, settings.HUB_TOKEN_SECRET, algorithm="HS256")


async def refused(reply: Awaitable[Any]) -> int:
    with pytest.raises(ErrorReply) as error:
        await reply
    return error.value.code


async def test_a_token_stands_in_for_the_permission(hub_client: Connect, ana: User) -> None:
    client = await hub_client(ana)
    assert await refused(client.subscribe("vault:1")) == 103

    result = await client.subscribe("vault:1", token=subscription_token(ana.pk, "vault:1", info={"role": "guard"}))
    members = (await client.command("presence", channel="vault:1"))["presence"]
    await client.publish("vault:1", "opened")

    assert (result["expires"], 598 <= result["ttl"] <= 600) == (True, True)
    assert members[client.session.id]["chan_info"] == {"role": "guard"}
    assert (await client.next_publication("vault:1"))["data"] == "opened"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "another"}, 103),
        ({"channel": "vault:2"}, 103),
        ({"exp": 1}, 109),
    ],
    ids=["another user's", "another topic's", "expired"],
)
async def test_a_token_opens_its_own_door_only(
    hub_client: Connect, ana: User, settings: Settings, claims: dict[str, Any], code: int
) -> None:
    client = await hub_client(ana)

    token = signed(settings, **{"sub": str(ana.pk), "channel": "vault:1", **claims})

    assert await refused(client.subscribe("vault:1", token=token)) == code
    assert "vault:1" not in client.session.subscriptions


async def test_judging_again_leaves_what_a_token_granted(hub_client: Connect, ana: User) -> None:
    client = await hub_client(ana)
    await client.subscribe("vault:1", token=subscription_token(ana.pk, "vault:1"))

    await control.judge_everybody(await current_switchboard())
    await apublish("vault:1", "message", "still here")

    assert (await client.next_publication("vault:1"))["data"] == "still here"


async def test_a_subscription_ends_when_its_token_has_expired(
    hub_client: Connect, ana: User, settings: Settings
) -> None:
    client = await hub_client(ana)
    token = signed(settings, sub=str(ana.pk), channel="vault:1", exp=time.time() + 1)

    await client.subscribe("vault:1", token=token)

    assert await client.next_push() == {
        "channel": "vault:1",
        "unsubscribe": {"code": 2501, "reason": "subscription expired"},
    }
    assert client.open


async def test_a_subscription_goes_on_with_another_token(hub_client: Connect, ana: User, settings: Settings) -> None:
    client = await hub_client(ana)
    token = signed(settings, sub=str(ana.pk), channel="vault:1", exp=time.time() + 1)
    await client.subscribe("vault:1", token=token)

    renewed = subscription_token(ana.pk, "vault:1", seconds=900)
    result = await client.command("sub_refresh", channel="vault:1", token=renewed)

    assert (result["expires"], 898 <= result["ttl"] <= 900) == (True, True)
    switchboard = await current_switchboard()
    assert switchboard.expiries.seconds_left(client.session) > 800
    expired = subscription_token(ana.pk, "vault:1", seconds=-5)
    assert await refused(client.command("sub_refresh", channel="vault:1", token=expired)) == 110
    assert await refused(client.command("sub_refresh", channel="vault:1", token="")) == 107
    assert await refused(client.command("sub_refresh", channel="vault:2", token=renewed)) == 103


async def test_a_connection_ends_when_its_token_has_expired(hub_client: Connect, ana: User) -> None:
    client = await hub_client(token=connection_token(ana, seconds=1))

    assert await client.closed_by_hub() == codes.EXPIRED


async def test_a_connection_goes_on_with_another_token(hub_client: Connect, ana: User) -> None:
    client = await hub_client(token=connection_token(ana, seconds=5))

    result = await client.command("refresh", token=connection_token(ana, seconds=900))

    assert (result["client"], result["expires"]) == (client.session.id, True)
    assert (await current_switchboard()).expiries.seconds_left(client.session) > 800


@pytest.mark.parametrize(("seconds", "code"), [(-5, codes.EXPIRED), (900, codes.INVALID_TOKEN)])
async def test_another_connection_token_must_be_good_and_of_the_same_user(
    hub_client: Connect, ana: User, seconds: float, code: codes.Code
) -> None:
    client = await hub_client(token=connection_token(ana, seconds=5))
    other = await User.objects.acreate_user("bob")

    client.send("refresh", token=connection_token(other, seconds=seconds))

    assert await client.closed_by_hub() == code


async def test_a_token_subscribes_with_options_of_its_own(hub_client: Connect, settings: Settings, ana: User) -> None:
    subs = {"vault:1": {"info": {"role": "guard"}, "data": {"greeting": "hi"}}}
    client = await hub_client(token=signed(settings, sub=str(ana.pk), subs=subs))

    result = client.connect_result["subs"]["vault:1"]
    members = (await client.command("presence", channel="vault:1"))["presence"]

    assert result["data"] == {"greeting": "hi"}
    assert members[client.session.id]["chan_info"] == {"role": "guard"}


async def test_more_server_subscriptions_than_allowed_close_the_connection(
    hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_MAX_SUBSCRIPTIONS = 2
    token = signed(settings, sub="42", channels=["open:1", "open:2", "open:3"])
    client = await hub_client(connect=False)

    client.send("connect", token=token)

    assert await client.closed_by_hub() == codes.TOPIC_LIMIT


async def test_a_subscription_by_the_server_that_has_expired_closes_the_connection(
    hub_client: Connect, ana: User
) -> None:
    client = await hub_client(ana)

    control.subscribe(topic="vault:1", user=str(ana.pk), expires_at=time.time() + 1)

    assert (await client.next_push())["channel"] == "vault:1"
    assert await client.closed_by_hub() == codes.SUBSCRIPTION_EXPIRED


async def test_the_server_speaks_to_one_user(hub_client: Connect, ana: User) -> None:
    clients = [await hub_client(ana), await hub_client(ana)]
    visitor = await hub_client()
    await visitor.subscribe("open:1")

    control.message(user=str(ana.pk), data={"hello": "Ana"})
    await apublish("open:1", "message", "a mark")

    for client in clients:
        assert await client.next_push() == {"message": {"data": {"hello": "Ana"}}}
    assert (await visitor.next_push())["pub"]["data"] == "a mark"


async def test_a_site_hears_what_clients_send(hub_client: Connect, ana: User) -> None:
    heard: list[tuple[Any, str, str]] = []

    async def hear(data: Any, identity: Identity, client: str, **_: Any) -> None:
        heard.append((data, identity.user, client))

    client = await hub_client(ana)
    client_message.connect(hear)
    try:
        client.session.feed('{"send":{"data":{"typing":true}}}')
        await client.subscribe("open:1")
    finally:
        client_message.disconnect(hear)

    assert heard == [({"typing": True}, str(ana.pk), client.session.id)]
    client.session.feed('{"send":{"data":1}}')  # which nobody hears any more
    assert await client.closed_by_hub() == codes.NOT_SUPPORTED


async def test_a_topic_whose_events_replace_each_other_recovers_the_newest(hub_client: Connect) -> None:
    first = await apublish("price:1", "message", 10)
    newest = await apublish("price:1", "message", 11)
    client, current, newcomer = [await hub_client() for _ in range(3)]

    recovered = await client.subscribe("price:1", since=first.cursor)
    up_to_date = await current.subscribe("price:1", since=newest.cursor)
    begun = await newcomer.subscribe("price:1", since=Cursor())

    expected = {"epoch": newest.epoch, "offset": 2, "recovered": True, "was_recovering": True}
    expected |= {"positioned": True, "recoverable": True}
    assert recovered == expected | {"publications": [{"data": 11, "offset": 2}]}
    assert up_to_date == expected
    assert begun == recovered
    await apublish("price:1", "message", 12)
    assert (await current.next_publication("price:1"))["data"] == 12


async def test_a_topic_that_has_nothing_newest_recovers_nothing(hub_client: Connect) -> None:
    client = await hub_client()

    result = await client.subscribe("price:1", since=Cursor())

    assert result.get("recovered", False) is False
    assert result["was_recovering"] is True


async def test_commands_beyond_the_rate_are_refused_and_then_disconnect(
    hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_MAX_COMMANDS_PER_SECOND = 5
    client = await hub_client()

    answered = [await client.answer("history", channel="open:1") for _ in range(6)]

    assert answered[-1] == {"code": 111, "message": "too many requests", "temporary": True}
    assert client.open
    for _ in range(10):
        client.send("history", channel="open:1")
    assert await client.closed_by_hub() == codes.TOO_MANY_REQUESTS


async def test_publications_of_one_user_are_counted_together(
    hub_client: Connect, settings: Settings, ana: User
) -> None:
    settings.HUB_MAX_PUBLISHES_PER_SECOND = 2
    clients = [await hub_client(ana), await hub_client(ana)]
    for client in clients:
        await client.subscribe("open:1")

    await clients[0].publish("open:1", 1)
    await clients[1].publish("open:1", 2)

    assert await refused(clients[0].publish("open:1", 3)) == 111


async def test_one_connection_too_many_of_a_user_is_closed(hub_client: Connect, settings: Settings, ana: User) -> None:
    settings.HUB_MAX_SESSIONS_PER_USER = 1
    await hub_client(ana)
    for _ in range(2):
        await hub_client()  # visitors are not one user
    second = await hub_client(ana, connect=False)

    second.send("connect")

    assert await second.closed_by_hub() == codes.CONNECTION_LIMIT


async def test_data_that_nests_too_deep_is_refused(hub_client: Connect, settings: Settings) -> None:
    settings.HUB_MAX_JSON_DEPTH = 4
    client = await hub_client()
    await client.subscribe("open:1")

    assert await refused(client.publish("open:1", [[[[[]]]]])) == 107
    await client.publish("open:1", [[[[]]]])

    assert (await client.next_publication("open:1"))["data"] == [[[[]]]]
