"""The distributed set-up of docker-compose.yml, with its own commands, on a real Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import redis
import yaml
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import PROJECT, HubProcess, eventually, free_port

SECRET = "the secret that signs the tokens of this test"
KEY = "the key of this test"


class Compose:
    """The services of docker-compose.yml as processes of this machine."""

    def __init__(self, folder: Path, redis_url: str, postgres_url: str) -> None:
        self.services: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.given = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": postgres_url,
            "SECRET_KEY": "a long random text that all processes of this test share, and nobody else",
            "ALLOWED_HOSTS": "127.0.0.1",
            "HUB_TOKEN_SECRET": SECRET,
            "HUB_API_KEYS": KEY,
        }
        self.processes: list[HubProcess] = []

    def start(self, service: str, *, port: int | None = None) -> HubProcess:
        """Start a service with its very command, on a free port."""
        command = [str(port or self.port) if word == "8000" else word for word in self.services[service]["command"]]
        arguments = command[1:] if command[0] == "python" else ["-m", *command]
        declared = {name: str(value) for name, value in self.services[service]["environment"].items()}
        files = {"HUB_DATA": str(self.folder / "data"), "HUB_FILES": str(self.folder / "files")}
        process = HubProcess(
            arguments, self.folder, {**declared, **self.given, **files}, name=f"{service}-{len(self.processes)}"
        )
        self.processes.append(process)
        return process

    def wait_until_ready(self, address: str) -> None:
        def answers() -> bool:
            try:
                return httpx.get(f"http://{address}/health/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers, seconds=60)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory, redis_url: str, postgres_url: str) -> Iterator[Compose]:
    redis.Redis.from_url(redis_url).flushall()
    running = Compose(tmp_path_factory.mktemp("compose"), redis_url, postgres_url)
    assert running.start("migrate").process.wait(120) == 0, running.processes[-1].output
    for service in ("web", "worker", "beat"):
        running.start(service)
    running.wait_until_ready(running.address)
    yield running
    for process in reversed(running.processes):
        process.stop()


async def receive(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 30))
    return message


async def subscribed(socket: ClientConnection, topic: str) -> None:
    """Connect with a token, and subscribe."""
    token = jwt.encode({"sub": "somebody", "exp": time.time() + 600}, SECRET, algorithm="HS256")
    await socket.send(json.dumps({"id": 1, "connect": {"token": token}}))
    await socket.send(json.dumps({"id": 2, "subscribe": {"channel": topic}}))
    assert "connect" in await receive(socket)
    assert "subscribe" in await receive(socket)


@pytest.mark.timeout(240)
async def test_a_task_of_the_worker_reaches_a_socket_of_the_web_process(compose: Compose) -> None:
    async with connect(f"ws://{compose.address}/connection/websocket") as socket:
        await subscribed(socket, "dashboard:system")

        samples = [(await receive(socket))["push"]["pub"] for _ in range(3)]

    first = samples[0]["offset"]
    assert [sample["offset"] for sample in samples] == [first, first + 1, first + 2]
    assert {sample["tags"]["type"] for sample in samples} == {"system.sample"}
    assert samples[-1]["data"]["connections"] >= 1


@pytest.mark.timeout(240)
async def test_a_second_web_process_gets_what_the_first_was_given(compose: Compose) -> None:
    port = free_port()
    second = compose.start("web", port=port)
    compose.wait_until_ready(f"127.0.0.1:{port}")
    async with connect(f"ws://127.0.0.1:{port}/connection/websocket") as socket:
        await subscribed(socket, "chat:lobby")
        body = {"channel": "chat:lobby", "data": {"message": "across"}}
        async with httpx.AsyncClient(headers={"X-API-Key": KEY}) as client:
            answer = await client.post(f"http://{compose.address}/api/publish", json=body)
            assert answer.json()["result"]["offset"] == 1

        while "pub" not in (push := (await receive(socket))["push"]):
            assert "join" in push

    assert push["pub"]["data"] == {"message": "across"}
    assert second.stop() in (0, -15)


@pytest.mark.timeout(240)
def test_one_beat_acts_however_many_are_started(compose: Compose) -> None:
    second = compose.start("beat")
    second.wait_for("beat")

    with httpx.Client(headers={"X-API-Key": KEY}) as client:

        def offset() -> int:
            answer = client.post(f"http://{compose.address}/api/history", json={"channel": "dashboard:system"})
            found: int = answer.json()["result"].get("offset", 0)
            return found

        begun, started = offset(), time.monotonic()
        eventually(lambda: offset() >= begun + 5, seconds=30)
        elapsed = time.monotonic() - started
        counted = offset() - begun

    assert counted <= elapsed + 2
    assert second.process.poll() is None


def test_every_process_stops_when_it_is_asked(compose: Compose) -> None:
    for process in compose.processes:
        assert process.stop() in (0, -15), process.output
