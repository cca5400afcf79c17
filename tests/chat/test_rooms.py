"""Rooms of any name, from a socket to the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client
from pytest_django import Settings

from notifications.chat.routing import websocket_urlpatterns
from notifications.delivery.identity import Identity
from notifications.events.topics import resolve, sender_of
from notifications.testing.client import ErrorReply, HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.mark.parametrize("room", ["lobby", "two words", "Küche & Bad", "会議室", "ops/night/shift", "{room}"])
async def test_what_is_said_reaches_sockets_of_both_kinds_and_the_page(
    hub_client: Connect, client: Client, room: str
) -> None:
    ana = await User.objects.acreate_user("ana")
    subscriber = await hub_client(ana)
    await subscriber.subscribe(f"chat:{room}")
    plain = WebsocketCommunicator(URLRouter(websocket_urlpatterns), f"/ws/chat/{quote(room)}/")
    # As a server hands it over.
    plain.scope |= {"path": f"/ws/chat/{room}/", "identity": Identity(str(ana.pk), sender_of(ana).info)}
    assert (await plain.connect())[0]
    assert (await plain.receive_json_from())["type"] == "connection_established"

    await subscriber.publish(f"chat:{room}", {"message": "from the SDK"})
    assert (await plain.receive_json_from())["message"] == "from the SDK"
    await plain.send_json_to({"message": "in plain words"})

    said = [(await subscriber.next_publication(f"chat:{room}"))["data"] for _ in range(2)]
    assert said == [{"message": "from the SDK"}, {"message": "in plain words"}]
    await sync_to_async(client.force_login)(ana)
    page = await sync_to_async(client.get)(f"/chat/{quote(room, safe='')}/")
    assert [message["data"] for message in page.context["state"]["messages"]] == said
    await plain.disconnect()


async def test_visitors_take_part_in_public_rooms_only(hub_client: Connect, settings: Settings) -> None:
    settings.HUB_PUBLIC_CHAT_ROOMS = ["help"]
    visitor = await hub_client()

    await visitor.subscribe("chat:help")
    await visitor.publish("chat:help", {"message": "hello?"})
    with pytest.raises(ErrorReply) as refusal:
        await visitor.subscribe("chat:lobby")

    assert (await visitor.next_publication("chat:help"))["data"] == {"message": "hello?"}
    assert refusal.value.code == 103
    assert not resolve("chat:lobby").allows("read_history", AnonymousUser())


@pytest.mark.parametrize("data", [{"message": ""}, {"message": "x" * 4_001}, {"message": 3}, {}, "hi"])
async def test_what_is_no_message_is_refused(hub_client: Connect, data: object) -> None:
    client = await hub_client(await User.objects.acreate_user("ana"))
    await client.subscribe("chat:lobby")

    with pytest.raises(ErrorReply) as refusal:
        await client.publish("chat:lobby", data)

    assert refusal.value.code == 107
