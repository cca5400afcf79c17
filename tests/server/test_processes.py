"""Processes beside the embedded hub, and servers other than the hub's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.conftest import API_KEY, OPEN_TOPICS
from tests.server.test_sockets import receive
from tests.servers import Hub, HubProcess, eventually, free_port

PUBLISH = "from notifications.events import publish; print(publish({topic!r}, 'message', 1).offset)"


async def test_another_process_publishes_into_the_running_hub(hub: Hub) -> None:
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:beside"}}')
        assert "connect" in await receive(socket)
        assert "subscribe" in await receive(socket)

        printed = hub.command("shell", "-v", "0", "-c", PUBLISH.format(topic="open:beside"))

        assert (await receive(socket))["push"]["pub"]["offset"] == int(printed)


async def test_a_plain_group_send_of_another_process_is_published(hub: Hub) -> None:
    send = (
        "from asgiref.sync import async_to_sync; from channels.layers import get_channel_layer; "
        "async_to_sync(get_channel_layer().group_send)('chat_beside', {'type': 'chat_message', 'message': 'plain'})"
    )
    hub.command("shell", "-v", "0", "-c", send)

    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        answer = await client.post(f"{hub.url}/api/history", json={"channel": "chat:beside", "limit": 10})

    assert [found["data"] for found in answer.json()["result"]["publications"]] == [{"message": "plain"}]


def test_without_the_hub_a_process_keeps_durable_events_and_refuses_others(tmp_path: Path) -> None:
    environment = {"HUB_TOPICS": OPEN_TOPICS}
    hub = Hub(tmp_path, **environment)
    hub.stop()

    kept = hub.command("shell", "-v", "0", "-c", PUBLISH.format(topic="chat:lobby"))
    refused = subprocess.run(
        [sys.executable, "-m", "hub", "publish", "open:1", "message", "1"],
        cwd=tmp_path,
        env=hub.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert kept.strip() == "1"
    assert refused.returncode == 1
    assert "manage.py runhub" in refused.stderr


def test_a_second_hub_on_the_same_folder_does_not_start(hub: Hub) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "hub", "runhub", str(free_port())],
        cwd=hub.folder,
        env=hub.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert second.returncode != 0
    assert "another hub process already serves" in second.stdout + second.stderr


async def test_a_killed_hub_comes_back_with_its_durable_events(tmp_path: Path) -> None:
    hub = Hub(tmp_path, HUB_API_KEYS=API_KEY)
    body = {"channel": "chat:lobby", "data": {"message": "kept"}}
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        published = (await client.post(f"{hub.url}/api/publish", json=body)).json()["result"]
        hub.kill()
        again = Hub(tmp_path, HUB_API_KEYS=API_KEY)
        answer = await client.post(f"{again.url}/api/history", json={"channel": "chat:lobby", "limit": 10})
        again.stop()

    history = answer.json()["result"]
    assert (history["offset"], history["epoch"]) == (1, published["epoch"])
    assert [found["data"] for found in history["publications"]] == [{"message": "kept"}]


async def test_a_server_without_the_extension_drives_the_same_sessions(tmp_path: Path) -> None:
    environment = {"HUB_DATA": str(tmp_path / "data"), "HUB_TOPICS": OPEN_TOPICS}
    HubProcess(["-m", "hub", "migrate"], tmp_path, environment, name="migrate").process.wait(60)
    port = free_port()
    command = ["-m", "uvicorn", "hub.asgi:application", "--port", str(port), "--ws", "websockets-sansio"]
    server = HubProcess(command, tmp_path, environment)
    server.wait_for("Uvicorn running")

    async with connect(f"ws://127.0.0.1:{port}/connection/websocket") as socket:
        await socket.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:1"}}')
        assert "connect" in await receive(socket)
        assert "subscribe" in await receive(socket)
        await socket.send('{"id":3,"publish":{"channel":"open:1","data":1}}')
        got = [await receive(socket), await receive(socket)]
        assert {"id": 3, "publish": {}} in got
        await socket.send("garbage")
        with pytest.raises(Exception, match="3501"):
            await receive(socket)

    assert server.stop() in (0, -15)
    assert eventually(lambda: "Traceback" not in server.output)


def test_topics_tells_what_is_declared(hub: Hub) -> None:
    printed = hub.command("topics")

    for pattern in (
        "chat:<path:room>",
        "alerts:all",
        "broadcasts:all",
        "activity:staff",
        "#<path:user_id>",
        "open:<path:rest>",
    ):
        assert pattern in printed
