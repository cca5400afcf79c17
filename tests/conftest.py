from __future__ import annotations

from collections.abc import Iterator

import pytest
from channels.layers import channel_layers

from notifications.delivery import presence, registry
from notifications.events import logs, threads
from tests.servers import Hub, RedisServer, postgres_server, redis_server_binary, required


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run chaos and storms for minutes, with thousands of sockets")


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


OPEN_TOPICS = """{"open": {"history_size": 100, "history_ttl": "300s", "presence": true, "join_leave": true,
    "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
    "allow_publish_for_subscriber": true, "allow_history_for_subscriber": true,
    "allow_presence_for_subscriber": true}}"""
API_KEY = "the key of one test run"
TOKEN_SECRET = "the secret that signs the tokens of one test run"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A running hub in its embedded mode, with the users admin, ana and bob (not staff)."""
    running = Hub(
        tmp_path_factory.mktemp("hub"),
        HUB_TOPICS=OPEN_TOPICS,
        HUB_API_KEYS=API_KEY,
        HUB_TOKEN_SECRET=TOKEN_SECRET,
    )
    for username in ("ana", "bob"):
        running.add_user(username)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL, reached through a Unix socket."""
    with postgres_server() as server:
        yield f"postgres:///{server.get_postmaster_info().socket_dir}/postgres?user=postgres"
