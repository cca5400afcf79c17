from __future__ import annotations

from collections.abc import Iterator

import pytest
from channels.layers import channel_layers

from notifications.delivery import presence, registry
from notifications.events import logs, threads
from tests.servers import RedisServer, redis_server_binary, required


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    """Logs, presence and leases in memory, as a process has them that has just started."""
    for forgotten in (logs.memory_log, presence._memory_presence, registry._memory_registry):
        forgotten.cache_clear()  # type: ignore[attr-defined]
    yield
    threads.close_all()


@pytest.fixture(autouse=True)
def _own_layers() -> None:
    """A channel layer of its own for each test."""
    channel_layers.backends.clear()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server on a free port."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()
