"""The personal topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from pytest_django import Settings

from notifications.delivery.identity import Identity, TokenUser
from notifications.events import apublish, publish, user_topic
from notifications.events.selectors import history
from notifications.events.topics import resolve
from notifications.inbox.topics import PersonalTopic
from notifications.testing.client import ErrorReply, HubClient

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def user_named(name: str) -> User:
    return User.objects.create_user(name)


async def test_what_is_published_to_a_user_reaches_all_their_clients_and_nobody_else(
    hub_client: Callable[..., Awaitable[HubClient]],
) -> None:
    ana, bea = await sync_to_async(user_named)("ana"), await sync_to_async(user_named)("bea")
    first, second, other = await hub_client(ana), await hub_client(ana), await hub_client(bea)

    await apublish(user_topic(ana), "note", {"title": "Hello"})
    await apublish(user_topic(bea), "note", {"title": "For Bea"})

    for client in (first, second):
        assert (await client.next_publication(user_topic(ana)))["data"] == {"title": "Hello"}
    assert (await other.next_push())["pub"]["data"] == {"title": "For Bea"}


async def test_nobody_subscribes_to_the_topic_of_another(
    hub_client: Callable[..., Awaitable[HubClient]],
) -> None:
    ana, bea = await sync_to_async(user_named)("ana"), await sync_to_async(user_named)("bea")

    for client in (await hub_client(bea), await hub_client()):
        with pytest.raises(ErrorReply) as refusal:
            await client.subscribe(user_topic(ana))
        assert refusal.value.code == 103


def test_the_topic_keeps_the_last_hundred_for_a_week() -> None:
    ana = user_named("ana")
    for number in range(101):
        publish(user_topic(ana), "note", number)

    events, position = history(user_topic(ana), limit=None)

    assert [event.data for event in events] == list(range(1, 101))
    assert position.offset == 101
    assert resolve(user_topic(ana)).retention.seconds == 7 * 24 * 3600


@pytest.mark.parametrize(
    ("subject", "subscribed"),
    [("customer-7", True), ("urn:customer:7", True), ("with space/and slash", True), ("new\nline", False)],
)
def test_the_bearer_of_a_token_has_a_topic_where_its_subject_can_name_one(subject: str, subscribed: bool) -> None:
    user = TokenUser(Identity(user=subject, from_token=True))

    names = tuple(PersonalTopic().server_subscriptions(user))

    assert names == ((f"#{subject}",) if subscribed else ())
    assert all(resolve(name).allows("subscribe", user) for name in names)


def test_visitors_have_none() -> None:
    assert tuple(PersonalTopic().server_subscriptions(AnonymousUser())) == ()
    assert not resolve("#7").allows("subscribe", AnonymousUser())
    assert not resolve("#None").allows("subscribe", AnonymousUser())
