"""Topics that are opened and closed together, while the channel layer has troubles of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from channels.layers import InMemoryChannelLayer, channel_layers
from pytest_django import Settings

from notifications.delivery.switchboard import current_switchboard, stop_current
from notifications.testing.client import HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


class LayerThatCannotLeave(InMemoryChannelLayer):  # type: ignore[misc]
    """A layer that finds out, when `asked` is set, that its server is gone, and says so in an error of its own."""

    asked: asyncio.Event

    async def group_discard(self, group: str, channel: str) -> None:
        await self.asked.wait()
        raise ConnectionError("the server is gone")


class LayerThatStalls(InMemoryChannelLayer):  # type: ignore[misc]
    """A layer that never confirms the group of a topic."""

    async def group_add(self, group: str, channel: str) -> None:
        if group.startswith("hub.open"):
            await asyncio.get_running_loop().create_future()
        await super().group_add(group, channel)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def use(settings: Settings, layer: type[InMemoryChannelLayer]) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"{__name__}.{layer.__name__}"}}
    channel_layers.backends.clear()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition of the event loop holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_a_group_that_cannot_be_left_holds_up_no_other(settings: Settings, hub_client: Connect) -> None:
    LayerThatCannotLeave.asked = asyncio.Event()
    use(settings, LayerThatCannotLeave)
    client = await hub_client()
    await client.subscribe("open:1")
    await client.command("unsubscribe", channel="open:1")
    switchboard = await current_switchboard()

    switchboard.forget(switchboard.topics["open:1"])
    subscribing = asyncio.create_task(client.subscribe("open:2"))
    await until(lambda: "open:2" in switchboard.topics)
    LayerThatCannotLeave.asked.set()

    assert (await subscribing)["recoverable"]


async def test_nobody_waits_for_a_topic_when_the_process_stops(settings: Settings, hub_client: Connect) -> None:
    use(settings, LayerThatStalls)
    client = await hub_client()
    switchboard = await current_switchboard()
    for number, topic in enumerate(("open:1", "open:2"), 2):
        session = client.session if number == 2 else (await hub_client()).session
        session.feed(f'{{"id":{number},"subscribe":{{"channel":"{topic}"}}}}')
        await until(lambda topic=topic: topic in switchboard.topics)  # type: ignore[misc]
    opening = [live.opened for live in switchboard.topics.values()]

    await stop_current()
    await asyncio.sleep(0)

    assert [opened is not None and opened.done() for opened in opening] == [True, True]
