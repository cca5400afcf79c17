"""The canary: what a process publishes comes back to it, or it says that it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from channels.layers import get_channel_layer
from pytest_django import Settings

from notifications.delivery import canary
from notifications.delivery.switchboard import current_switchboard, stop_current
from notifications.events import apublish
from notifications.testing.client import HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _quick(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.HUB_SOCKET = ""
    monkeypatch.setattr(canary, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(canary, "LATE_SECONDS", 0.3)


async def until_late(expected: bool) -> None:
    bird = (await current_switchboard()).housekeeping.canary
    async with asyncio.timeout(10):
        while await bird.late() is not expected:
            await asyncio.sleep(0)


async def test_what_is_published_comes_back() -> None:
    switchboard = await current_switchboard()

    for _ in range(3):
        assert not await switchboard.housekeeping.canary.late()
        await asyncio.sleep(0)

    await stop_current()


async def test_a_process_whose_memberships_were_lost_says_so_and_joins_again(hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")
    switchboard, layer = await current_switchboard(), get_channel_layer()
    await until_late(False)

    for group in (switchboard.housekeeping.canary.group, *(live.group for live in switchboard.topics.values())):
        await layer.group_discard(group, switchboard.channel)
    await until_late(True)
    await until_late(False)
    await apublish("open:1", "message", "heard")

    assert (await client.next_publication("open:1"))["data"] == "heard"
