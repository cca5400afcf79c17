"""Connections beyond what a server process takes, and which form of the protocol a connection speaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import websockets
from centrifuge.protocol import client_pb2
from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes
from websockets.asyncio.client import ClientConnection, connect

from notifications.server.messages import PING, TEXT
from tests.server.test_sockets import closed
from tests.server.wire import Peer, frame, request
from tests.servers import Hub

Make = Callable[..., Hub]


@pytest.fixture
def limited_hub(tmp_path: Path) -> Iterator[Make]:
    """Starts a hub with settings of the test's own."""
    running: list[Hub] = []

    def start(**environment: str) -> Hub:
        running.append(Hub(tmp_path, **environment))
        return running[-1]

    yield start
    for hub in running:
        hub.stop()


def url(hub: Hub, query: str = "") -> str:
    return f"ws://{hub.address}/connection/websocket{query}"


async def refusal(hub: Hub) -> tuple[int, bool]:
    """The status with which a connection is refused, and whether it says when to come back."""
    with pytest.raises(websockets.InvalidStatus) as error:
        async with connect(url(hub)):
            pass
    response = error.value.response
    return response.status_code, int(response.headers["retry-after"]) >= 1


async def stream_refusal(hub: Hub) -> tuple[int, bool]:
    """The same of a stream of events."""
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{hub.url}/events", params={"topic": "chat:lobby"})
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, int(response.headers["retry-after"]) >= 1


async def test_a_full_process_refuses_sessions_until_one_has_gone(limited_hub: Make) -> None:
    hub = limited_hub(HUB_MAX_SESSIONS="2")

    async with connect(url(hub)), connect(url(hub)):
        assert await refusal(hub) == (503, True)
        assert await stream_refusal(hub) == (503, True)
    async with asyncio.timeout(10):
        while True:
            try:
                async with connect(url(hub)):
                    return
            except websockets.InvalidStatus:
                await asyncio.sleep(0.05)  # the hub has yet to notice that the two have gone


async def test_connections_that_come_too_quickly_are_refused(limited_hub: Make) -> None:
    hub = limited_hub(HUB_MAX_CONNECTIONS_PER_SECOND="1")

    async with connect(url(hub)):
        assert await refusal(hub) == (429, True)
        assert await stream_refusal(hub) == (429, True)


async def test_an_event_source_is_told_when_to_come_back(limited_hub: Make) -> None:
    hub = limited_hub(HUB_MAX_SESSIONS="1")
    events = {"url": f"{hub.url}/events?topic=chat:lobby", "headers": {"accept": "text/event-stream"}}

    async with connect(url(hub)), httpx.AsyncClient() as client:
        response = await client.get(**events)

    # No error, after which it would never come back.
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    assert response.text == "retry: 5000\n: this process has as many sessions as it takes; try another\n\n"


def framed(*commands: client_pb2.Command) -> bytes:
    return b"".join(_VarintBytes(len(text := command.SerializeToString())) + text for command in commands)


async def replies(socket: ClientConnection, number: int) -> list[client_pb2.Reply]:
    """The next replies of a socket that speaks Protobuf; several may come in one message."""
    found: list[client_pb2.Reply] = []
    while len(found) < number:
        message = await asyncio.wait_for(socket.recv(), 10)
        assert isinstance(message, bytes)
        position = 0
        while position < len(message):
            length, position = _DecodeVarint32(message, position)
            found.append(client_pb2.Reply.FromString(message[position : position + length]))
            position += length
    return found


@pytest.mark.parametrize(
    ("query", "subprotocols"),
    [("", ["centrifuge-protobuf"]), ("?format=protobuf", None), ("?cf_protocol=protobuf", None)],
    ids=["subprotocol", "format", "cf_protocol"],
)
async def test_a_connection_speaks_protobuf_when_asked_to(
    hub: Hub, query: str, subprotocols: list[websockets.Subprotocol] | None
) -> None:
    async with connect(url(hub, query), subprotocols=subprotocols) as socket:
        topic = f"open:protobuf-{query}"
        connecting = client_pb2.Command(id=1, connect=client_pb2.ConnectRequest())
        subscribing = client_pb2.Command(id=2, subscribe=client_pb2.SubscribeRequest(channel=topic))
        await socket.send(framed(connecting, subscribing))
        connected, subscribed = await replies(socket, 2)
        publishing = client_pb2.PublishRequest(channel=topic, data=b'{"a": 1}')
        await socket.send(framed(client_pb2.Command(id=3, publish=publishing)))
        published, pushed = sorted(await replies(socket, 2), key=lambda reply: -reply.id)

        assert (connected.id, connected.connect.ping, connected.connect.pong) == (1, 25, True)
        assert (subscribed.id, subscribed.subscribe.recoverable) == (2, True)
        assert (published.id, published.HasField("publish")) == (3, True)
        assert (pushed.push.channel, pushed.push.pub.data, pushed.push.pub.offset) == (topic, b'{"a":1}', 1)
        assert pushed.push.pub.info.client == connected.connect.client


@pytest.mark.parametrize("message", ["{}", b"\x05abc"], ids=["text", "truncated"])
async def test_what_is_no_protobuf_closes_the_connection(hub: Hub, message: str | bytes) -> None:
    async with connect(url(hub, "?format=protobuf")) as socket:
        await socket.send(message)

        assert await closed(socket) == (3501, "bad request")


def test_a_connection_may_have_the_pings_of_websockets(limited_hub: Make) -> None:
    hub = limited_hub(HUB_PING_SECONDS="1", HUB_PONG_SECONDS="1")
    with Peer(hub.port) as peer:
        peer.send(request("/connection/websocket?cf_ws_frame_ping_pong=true"))
        assert peer.response().status == 101
        peer.send(frame(TEXT, b'{"id":1,"connect":{}}'))

        connected = json.loads(peer.text())["connect"]
        pings = [peer.frame().opcode for _ in range(3)]

        assert connected.keys().isdisjoint({"ping", "pong"})
        assert pings == [PING, PING, PING]  # none was answered, and the connection is still there
        peer.send(frame(TEXT, b'{"id":2,"rpc":{"method":"nothing"}}'))
        answers = iter(peer.frame, None)
        assert json.loads(next(found.payload for found in answers if found.opcode == TEXT))["error"]["code"] == 108
