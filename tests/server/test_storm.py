"""A hub that is killed, and a thousand sockets that come back at once to the one that takes its place."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from pytest_django import Settings
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from notifications.events import publish
from tests.conftest import OPEN_TOPICS
from tests.servers import Hub, RedisServer, free_port, redis_server_binary, required

SOCKETS = 1_000
#: Handshakes under way at once, as many as a client of one thread gets done in time.
AT_ONCE = 100
TOPIC = "open:storm"


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Path) -> Iterator[RedisServer]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = server.url
    backend = "notifications.events.redis_layer.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [{"address": server.url}]}}}
    channel_layers.backends.clear()
    yield server
    server.stop()


class Follower:
    """A client that keeps its cursor, and comes back with it."""

    def __init__(self, address: str) -> None:
        self.url = f"ws://{address}/connection/websocket"
        self.epoch = ""
        self.offsets: list[int] = []
        self.recovered: bool | None = None
        self.socket: ClientConnection | None = None
        self._lines: list[str] = []

    async def follow(self, limit: asyncio.Semaphore) -> None:
        """Subscribe, from where this client was, and take what it missed."""
        subscribe: dict[str, Any] = {"channel": TOPIC}
        if self.epoch:
            subscribe |= {"recover": True, "epoch": self.epoch, "offset": len(self.offsets)}
        async with limit:
            self.socket = await connect(self.url, compression=None, ping_interval=None, open_timeout=30)
            await self.socket.send(f'{{"id":1,"connect":{{}}}}\n{json.dumps({"id": 2, "subscribe": subscribe})}')
            while (reply := await self._next()).get("id") != 2:
                pass
        result = reply["subscribe"]
        self.epoch, self.recovered = result["epoch"], result.get("recovered", False)
        self.offsets += [found["offset"] for found in result.get("publications", [])]

    async def until(self, offset: int) -> None:
        """Take what is pushed, up to an offset."""
        while len(self.offsets) < offset:
            message = await self._next()
            if "pub" in message.get("push", {}):
                self.offsets.append(message["push"]["pub"]["offset"])

    async def lost(self) -> None:
        """Wait until the socket is gone."""
        assert self.socket is not None
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed:
            self.socket = None

    async def _next(self) -> dict[str, Any]:
        assert self.socket is not None
        if not self._lines:
            self._lines = str(await asyncio.wait_for(self.socket.recv(), 20)).split("\n")
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        return message


async def test_a_thousand_sockets_come_back_to_a_hub_that_was_killed(own_redis: RedisServer, tmp_path: Path) -> None:
    options = {"REDIS_URL": own_redis.url, "SECRET_KEY": "of one test", "HUB_TOPICS": OPEN_TOPICS}
    port, statistics = free_port(), redis.Redis.from_url(own_redis.url)
    hub = await asyncio.to_thread(Hub, tmp_path, port=port, **options)
    followers = [Follower(hub.address) for _ in range(SOCKETS)]
    limit = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(follower.follow(limit) for follower in followers))
    for number in range(2):
        await asyncio.to_thread(publish, TOPIC, "message", number)
    await asyncio.gather(*(follower.until(2) for follower in followers))

    hub.kill()
    await asyncio.gather(*(follower.lost() for follower in followers))
    for number in range(5):
        await asyncio.to_thread(publish, TOPIC, "message", number)
    again = await asyncio.to_thread(Hub, tmp_path, port=port, **options)
    statistics.config_resetstat()
    began = time.monotonic()
    await asyncio.gather(*(follower.follow(limit) for follower in followers))
    seconds = time.monotonic() - began
    reads: int = statistics.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0)  # type: ignore[union-attr]
    await asyncio.to_thread(publish, TOPIC, "message", "live")
    await asyncio.gather(*(follower.until(8) for follower in followers))
    await asyncio.gather(*(follower.socket.close() for follower in followers if follower.socket is not None))
    again.stop()

    assert all(follower.recovered for follower in followers)
    assert all(follower.offsets == [1, 2, 3, 4, 5, 6, 7, 8] for follower in followers)
    # One, and another whenever what was read had been let go.
    assert reads <= 1 + seconds
