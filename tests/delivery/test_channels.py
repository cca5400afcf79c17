"""Plain Channels code beside the hub: an unmodified consumer of the tutorial, on every kind of layer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import channel_layers
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from pytest_django import Settings

from notifications.events import apublish
from notifications.events.logs import log_for
from notifications.events.topics import resolve
from notifications.testing.client import HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


class ChatConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """The consumer of the Channels tutorial, part 3, as it stands there."""

    async def connect(self):  # type: ignore[no-untyped-def]
        self.room_name = self.scope["url_route"]["kwargs"]["room_name"]
        self.room_group_name = f"chat_{self.room_name}"
        await self.channel_layer.group_add(self.room_group_name, self.channel_name)
        await self.accept()

    async def disconnect(self, close_code):  # type: ignore[no-untyped-def]
        await self.channel_layer.group_discard(self.room_group_name, self.channel_name)

    async def receive(self, text_data):  # type: ignore[no-untyped-def]
        text_data_json = json.loads(text_data)
        message = text_data_json["message"]
        await self.channel_layer.group_send(self.room_group_name, {"type": "chat_message", "message": message})

    async def chat_message(self, event):  # type: ignore[no-untyped-def]
        message = event["message"]
        await self.send(text_data=json.dumps({"message": message}))


@pytest.fixture(params=["in-process", "in-memory", "redis-hub", "redis-pubsub", "redis-core"])
def layer(request: pytest.FixtureRequest, settings: Settings) -> str:
    """The channel layer that the site configured."""
    settings.HUB_SOCKET = ""
    if request.param == "in-memory":
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    elif request.param.startswith("redis"):
        url = request.getfixturevalue("redis_url")
        backend, host = {
            "redis-hub": ("notifications.events.redis_layer.RedisChannelLayer", {"address": url}),
            "redis-pubsub": ("channels_redis.pubsub.RedisPubSubChannelLayer", {"address": url}),
            "redis-core": ("channels_redis.core.RedisChannelLayer", {"address": url, "socket_timeout": None}),
        }[request.param]
        settings.HUB_REDIS_URL = url
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [host]}}}
    channel_layers.backends.clear()
    return str(request.param)


async def tutorial_client() -> WebsocketCommunicator:
    communicator = WebsocketCommunicator(ChatConsumer.as_asgi(), "/ws/chat/lobby/")
    communicator.scope["url_route"] = {"kwargs": {"room_name": "lobby"}}
    connected, _ = await communicator.connect(timeout=5)
    assert connected
    return communicator


async def test_the_tutorial_consumer_and_the_hub_share_a_room(layer: str, hub_client: Connect) -> None:
    user = await User.objects.acreate_user("ana")
    client = await hub_client(user)
    await client.subscribe("chat:lobby")
    plain = await tutorial_client()

    await plain.send_json_to({"message": "from the tutorial"})
    from_plain = await client.next_publication("chat:lobby")
    echoed = await plain.receive_json_from(timeout=5)
    await client.publish("chat:lobby", {"message": "from the hub"})
    from_hub = await plain.receive_json_from(timeout=5)
    await plain.disconnect()

    assert from_plain["data"] == {"message": "from the tutorial"}
    assert echoed == {"message": "from the tutorial"}
    assert from_hub == {"message": "from the hub"}
    topic = resolve("chat:lobby")
    page = await log_for(topic.retention).aread(topic, since=None, limit=None)
    assert [event.decoded().data["message"] for event in page.events] == ["from the tutorial", "from the hub"]


async def test_an_event_without_a_handler_never_reaches_plain_consumers(layer: str, hub_client: Connect) -> None:
    plain = await tutorial_client()

    await apublish("chat:lobby", "chat.topic_changed", {"topic": "cats"})
    await apublish("chat:lobby", "chat.message", {"message": "after"})

    assert await plain.receive_json_from(timeout=5) == {"message": "after"}
    await plain.disconnect()


async def test_window_topics_work_on_every_layer(layer: str, hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")

    for number in range(5):
        await apublish("open:1", "message", number)

    assert [(await client.next_publication("open:1"))["data"] for _ in range(5)] == [0, 1, 2, 3, 4]
