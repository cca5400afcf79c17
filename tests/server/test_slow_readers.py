"""Clients that stop reading, on real sockets: nobody else is concerned, and they hold little and not for ever."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from notifications.server.websocket import HubWebSocketProtocol
from tests.conftest import API_KEY
from tests.server.rigs import Direct
from tests.server.wire import TEXT, Peer, frame, request
from tests.servers import Hub, eventually

TOPICS = {
    "allow_subscribe_for_anonymous": True,
    "history_size": 10,
    "history_ttl": "300s",
}
FILLER = "x" * 60_000
EVENTS = 400
KEYS = 4

names = (f"{number}" for number in count(1))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with topics that conflate, and others."""
    declared = {"prices": {**TOPICS, "conflate": True}, "talk": TOPICS}
    running = Hub(tmp_path_factory.mktemp("hub"), HUB_TOPICS=json.dumps(declared), HUB_API_KEYS=API_KEY)
    yield running
    running.stop()


def subscribing(topic: str) -> str:
    return f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":"{topic}"}}}}'


def stalled(hub: Hub, topic: str) -> Peer:
    """A client that subscribes, and then reads nothing."""
    peer = Peer(hub.port, receive_buffer=4_096)
    peer.send(request("/connection/websocket", f"Origin: {hub.url}"))
    assert peer.response().status == 101
    peer.send(frame(TEXT, subscribing(topic).encode()))
    while '"subscribe"' not in peer.text():
        pass
    return peer


def connections_from(hub: Hub, peer: Peer) -> int:
    """Connections of the hub to this client, whatever their state."""
    port = peer.socket.getsockname()[1]
    found = psutil.Process(hub.process.pid).net_connections("tcp")
    return sum(bool(connection.raddr) and connection.raddr.port == port for connection in found)


def lines_of(message: str) -> list[Any]:
    return [json.loads(line) for line in message.splitlines()]


async def publications(socket: ClientConnection, number: int) -> list[int]:
    """The offsets of so many publications that a client gets."""
    offsets: list[int] = []
    while len(offsets) < number:
        pushes = [message.get("push", {}) for message in lines_of(str(await asyncio.wait_for(socket.recv(), 20)))]
        offsets += [push["pub"]["offset"] for push in pushes if "pub" in push]
    return offsets


async def publish(hub: Hub, topic: str, events: int) -> None:
    headers = {"X-API-Key": API_KEY}
    async with httpx.AsyncClient(base_url=hub.url, headers=headers) as client:
        for number in range(events):
            body = {"channel": topic, "key": f"share {number % KEYS}", "data": [number, FILLER]}
            assert (await client.post("/api/publish", json=body)).json().keys() == {"result"}


async def read_by(hub: Hub, topic: str, events: int) -> list[list[int]]:
    """Publish so many events, and return the offsets that each of three clients gets meanwhile."""
    sockets = [await connect(f"ws://{hub.address}/connection/websocket") for _ in range(3)]
    for socket in sockets:
        await socket.send(subscribing(topic))
        assert len([await socket.recv() for _ in range(2)]) == 2
    *read, _ = await asyncio.gather(*(publications(socket, events) for socket in sockets), publish(hub, topic, events))
    for socket in sockets:
        await socket.close()
    return read


async def test_who_stops_reading_for_a_while_gets_the_newest_per_key(hub: Hub) -> None:
    topic = f"prices:{next(names)}"
    peer = await asyncio.to_thread(stalled, hub, topic)
    process = psutil.Process(hub.process.pid)
    await read_by(hub, f"talk:{next(names)}", 20)
    before = process.memory_info().rss

    read = await read_by(hub, topic, EVENTS)
    grown = process.memory_info().rss - before
    got: list[tuple[int, int]] = []
    while not got or got[-1][0] < EVENTS:
        for message in lines_of(await asyncio.to_thread(peer.text)):
            if "pub" in message.get("push", {}):
                publication = message["push"]["pub"]
                got.append((publication["offset"], publication["data"][0]))
    peer.socket.close()

    assert read == [list(range(1, EVENTS + 1))] * 3
    assert [offset for offset, _ in got] == sorted({offset for offset, _ in got})
    assert [number for _, number in got[-KEYS:]] == list(range(EVENTS - KEYS, EVENTS))
    assert len(got) < EVENTS / 2
    assert grown < EVENTS * len(FILLER) / 2


async def test_who_stops_reading_a_stream_for_a_while_gets_the_newest_per_key(hub: Hub) -> None:
    topic = f"prices:{next(names)}"
    peer = await asyncio.to_thread(stalled_stream, hub, "/events", topic)

    read = await read_by(hub, topic, EVENTS)
    last = f":{EVENTS}\n".encode()
    while last not in peer.unread[-200_000:]:
        peer.unread += await asyncio.to_thread(peer.socket.recv, 65_536)
    got = [int(offset) for offset in re.findall(rb"\nid: [^:\n]+:(\d+)\n", peer.unread)]
    peer.socket.close()

    assert read == [list(range(1, EVENTS + 1))] * 3
    assert got == sorted(set(got))
    assert got[-KEYS:] == list(range(EVENTS - KEYS + 1, EVENTS + 1))
    assert len(got) < EVENTS / 2


async def test_who_stops_reading_events_that_all_count_is_closed_and_gone(hub: Hub) -> None:
    topic = f"talk:{next(names)}"
    peer = await asyncio.to_thread(stalled, hub, topic)
    assert connections_from(hub, peer) == 1

    read = await read_by(hub, topic, EVENTS)

    assert read == [list(range(1, EVENTS + 1))] * 3
    await asyncio.to_thread(eventually, lambda: connections_from(hub, peer) == 0)
    peer.socket.close()


def stalled_stream(hub: Hub, path: str, topic: str) -> Peer:
    """A client of a stream that reads nothing once it is subscribed."""
    peer = Peer(hub.port, receive_buffer=4_096)
    if path == "/events":
        peer.send(f"GET {path}?topic={topic} HTTP/1.1\r\nHost: {hub.address}\r\n\r\n".encode())
        subscribed = b"retry:"
    else:
        body, subscribed = subscribing(topic), b'"subscribe"'
        head = f"POST {path} HTTP/1.1\r\nHost: {hub.address}\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.send(head.encode() + body.encode())
    while subscribed not in peer.unread:
        peer.unread += peer.socket.recv(4_096)
    return peer


@pytest.mark.parametrize("path", ["/events", "/connection/sse", "/connection/http_stream"])
async def test_a_stream_that_nobody_reads_is_closed_and_gone(hub: Hub, path: str) -> None:
    topic = f"talk:{next(names)}"
    peer = await asyncio.to_thread(stalled_stream, hub, path, topic)
    assert connections_from(hub, peer) == 1

    read = await read_by(hub, topic, EVENTS)

    assert read == [list(range(1, EVENTS + 1))] * 3
    await asyncio.to_thread(eventually, lambda: connections_from(hub, peer) == 0)
    peer.socket.close()
    assert "without completing response" not in hub.output


async def test_a_session_writes_to_the_stream_itself_while_its_peer_takes_what_it_is_sent() -> None:
    direct = await Direct(HubWebSocketProtocol).open()
    lent = [direct.stream]

    direct.protocol.pause_writing()
    lent.append(direct.stream)
    direct.protocol.resume_writing()
    lent.append(direct.stream)

    assert lent == [direct.transport, None, direct.transport]


@pytest.mark.parametrize("ends", ["eof", "write"])
async def test_a_session_writes_to_no_stream_that_ends(ends: str) -> None:
    direct = await Direct(HubWebSocketProtocol).open()

    if ends == "eof":
        direct.protocol.eof_received()
    else:
        direct.transport.write_eof()  # as after a failure that the loop has not told of yet
        direct.protocol.write([b"frame"])
    lent = [direct.stream]
    direct.protocol.pause_writing()
    direct.protocol.resume_writing()
    lent.append(direct.stream)

    assert lent == [None, None]
