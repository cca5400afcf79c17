from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pytest_django import Settings

from notifications.delivery.switchboard import Switchboard
from notifications.events.redis_clients import async_client


@pytest.fixture(params=["memory", "redis"])
async def switchboards(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[list[Switchboard]]:
    """Two server processes of one hub, with what they tell of themselves in memory or in Redis."""
    settings.HUB_SOCKET = ""
    if request.param == "redis":
        settings.HUB_REDIS_URL = request.getfixturevalue("redis_url")
        await async_client().flushall()
    both = [Switchboard(), Switchboard()]
    for switchboard in both:
        await switchboard.start()
    yield both
    for switchboard in both:
        await switchboard.stop()
