"""What the server processes tell of themselves, and what is left of it when Redis or one of them is lost."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from notifications.delivery.registry import LEASE_SECONDS, Node, RedisRegistry
from notifications.events.redis_clients import async_client

NODE = Node(id="one", channel="hub.one", subscriptions=3)


@pytest.fixture
async def registry(redis_url: str, settings: Settings) -> RedisRegistry:
    settings.HUB_REDIS_URL = redis_url
    await async_client().flushall()
    return RedisRegistry()


async def test_subscribers_are_told_anew_when_redis_lost_them(registry: RedisRegistry) -> None:
    await registry.renew(NODE, {"open:1": 1, "open:2": 2})
    kept = await registry.renew(NODE, {"open:1": 0})
    await async_client().flushall()

    kept_after_the_loss = await registry.renew(NODE, {"open:3": 1})

    assert (kept, kept_after_the_loss) == (True, False)
    assert await registry.asubscribers() == {"open:3": 1}


async def test_what_a_process_told_expires_with_it(registry: RedisRegistry) -> None:
    await registry.renew(NODE, {"open:1": 1})

    remaining = await async_client().ttl("hub:subscribers:one")

    assert LEASE_SECONDS < remaining <= 10 * LEASE_SECONDS


async def test_a_process_that_leaves_takes_all_along(registry: RedisRegistry) -> None:
    await registry.renew(NODE, {"open:1": 1})

    await registry.remove("one")

    assert await registry.anodes() == []
    assert await async_client().keys("hub:*") == []
