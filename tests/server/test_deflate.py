"""permessage-deflate (RFC 7692): off unless asked for, and then one compressed frame for all."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate

from notifications.delivery.frames import DEFLATE_LEAST_BYTES, websocket_deflated_text, websocket_text
from notifications.server.handshake import Refused, read_request
from tests.conftest import OPEN_TOPICS
from tests.servers import Hub

LONG = "the same words again and again, " * 200


@pytest.fixture(scope="module")
def deflating_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"), HUB_TOPICS=OPEN_TOPICS, HUB_WEBSOCKET_DEFLATE="1")
    yield hub
    hub.stop()


@asynccontextmanager
async def subscribed(hub: Hub, topic: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://{hub.address}/connection/websocket", **options) as socket:
        await socket.send(json.dumps({"id": 1, "connect": {}}))
        await answer(socket, 1)
        await socket.send(json.dumps({"id": 2, "subscribe": {"channel": topic}}))
        await answer(socket, 2)
        yield socket


async def answer(socket: ClientConnection, number: int) -> None:
    while json.loads(await asyncio.wait_for(socket.recv(), 10)).get("id") != number:
        pass


async def published(socket: ClientConnection) -> Any:
    while "pub" not in (push := json.loads(await asyncio.wait_for(socket.recv(), 10)).get("push", {})):
        pass
    return push["pub"]["data"]


async def test_compressed_and_plain_clients_get_the_same(deflating_hub: Hub) -> None:
    topic = "open:deflate"
    async with (
        subscribed(deflating_hub, topic) as compressed,
        subscribed(deflating_hub, topic, compression=None) as plain,
    ):
        (extension,) = compressed.protocol.extensions
        assert isinstance(extension, PerMessageDeflate)
        assert extension.remote_no_context_takeover
        assert extension.local_no_context_takeover
        assert plain.protocol.extensions == []

        # What a client compresses is understood as well.
        await compressed.send(json.dumps({"id": 3, "publish": {"channel": topic, "data": LONG}}))
        assert [await published(compressed), await published(plain)] == [LONG, LONG]
        await plain.send(json.dumps({"id": 3, "publish": {"channel": topic, "data": "short"}}))
        assert [await published(compressed), await published(plain)] == ["short", "short"]


async def test_a_hub_compresses_only_when_asked_to(hub: Hub) -> None:
    async with subscribed(hub, "open:plain") as socket:
        assert socket.protocol.extensions == []


async def test_a_small_frame_that_blows_up_is_refused(deflating_hub: Hub) -> None:
    async with subscribed(deflating_hub, "open:bomb") as socket:
        await socket.send("x" * 1_000_000)

        with pytest.raises(websockets.ConnectionClosed) as closing:
            await asyncio.wait_for(socket.recv(), 10)
    assert closing.value.rcvd is not None
    assert closing.value.rcvd.code == 1009


async def test_a_client_with_a_smaller_window_is_served_uncompressed(deflating_hub: Hub) -> None:
    offers = [ClientPerMessageDeflateFactory(server_max_window_bits=9)]
    async with subscribed(deflating_hub, "open:window", compression=None, extensions=offers) as socket:
        assert socket.protocol.extensions == []


def test_a_compressed_frame_needs_nothing_that_was_sent_before() -> None:
    payload = LONG.encode()

    first, second = websocket_deflated_text(payload), websocket_deflated_text(payload)

    assert first == second
    assert first[0] == 0xC1
    header = 2 if first[1] < 126 else 4
    assert zlib.decompressobj(-12).decompress(first[header:] + b"\x00\x00\xff\xff") == payload


def test_what_is_too_short_to_gain_is_not_compressed() -> None:
    payload = b"x" * (DEFLATE_LEAST_BYTES - 1)

    assert websocket_deflated_text(payload) == websocket_text(payload)


@pytest.mark.parametrize(
    ("offer", "possible"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),
        ('permessage-deflate; server_max_window_bits="12"', True),
        ("permessage-deflate; server_max_window_bits=11", False),
        ("permessage-deflate; server_max_window_bits=11, permessage-deflate", True),
        ("permessage-deflate; unheard_of", False),
        ("x-webkit-deflate-frame", False),
    ],
)
def test_only_offers_that_fit_every_receiver_are_taken(offer: str, possible: bool) -> None:
    request = (
        "GET / HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Extensions: {offer}\r\n\r\n"
    )

    assert read_request(request.encode()).deflate is possible


def test_a_refusal_names_its_reason() -> None:
    with pytest.raises(Refused, match="one Host header"):
        read_request(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
