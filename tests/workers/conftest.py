"""A broker, a site and its workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import HubProcess, RedisServer, redis_server_binary, required
from tests.workers.site import Site, kill


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    yield server
    server.stop()


@pytest.fixture
def site(tmp_path: Path, broker: RedisServer) -> Site:
    return Site(tmp_path, broker.url)


@pytest.fixture
def workers() -> Iterator[list[HubProcess]]:
    """Workers that are stopped at the end, whatever their tasks do."""
    started: list[HubProcess] = []
    yield started
    for worker in started:
        if worker.process.poll() is None:
            kill(worker)
