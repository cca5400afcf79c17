"""The rules of RFC 6455 that a server keeps once a WebSocket is open, each tried on a running server.

Every test runs with an ordinary ASGI application and with a session that took the connection over.
"""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import wsproto.connection
import wsproto.events
from pytest_django import Settings

from notifications.delivery import codes
from notifications.server import sansio, websocket
from notifications.server.sansio import SansIOWebSocketProtocol
from notifications.server.websocket import HubWebSocketProtocol
from tests.server.rigs import CLASSES, GOODBYE, Connected, Direct, Server, WebSocketClass, quiet
from tests.server.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    close_frame,
    frame,
    request,
)
from tests.servers import eventually

Open = Callable[..., AbstractContextManager[Connected]]

LIMIT = 65_536
GRACE_SECONDS = 0.3


@pytest.fixture(scope="module", params=CLASSES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server for each WebSocket class."""
    running = Server(request.param)
    yield running
    running.stop()


@pytest.fixture(params=["echo", "session"])
def open_socket(request: pytest.FixtureRequest, server: Server) -> Open:
    """Opens WebSockets, whose text is echoed by an ASGI application or by a session."""
    return lambda **options: server.open(f"/{request.param}", **options)


@pytest.fixture(scope="module")
def hub_server() -> Iterator[Server]:
    """A server with the hub's own class, for what the fallback does otherwise."""
    running = Server(HubWebSocketProtocol)
    yield running
    running.stop()


@pytest.fixture(params=["echo", "session"])
def open_hub_socket(request: pytest.FixtureRequest, hub_server: Server) -> Open:
    """Opens WebSockets of the hub's own class."""
    return lambda **options: hub_server.open(f"/{request.param}", **options)


@pytest.fixture
def by_hub(server: Server) -> bool:
    """Whether the parser is the hub's own; the fallback's is that of the `websockets` library."""
    return server.websocket_class is not SansIOWebSocketProtocol


@pytest.fixture
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (websocket, sansio):
        monkeypatch.setattr(module, "CLOSE_SECONDS", GRACE_SECONDS)


def fails_with(open_socket: Open, code: int, *data: bytes) -> None:
    """The bytes make the server fail the connection with a code, and the application or session is told its end."""
    with open_socket() as connected:
        connected.peer.send(b"".join(data))
        assert connected.peer.closed() == code
        assert connected.ended()


# §5.1 masking


def test_masks_are_taken_off(open_socket: Open) -> None:
    keys = [bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x01\x02\x7f"]
    payloads = ["x" * size for size in range(9)] + ["é" * 500]
    with open_socket() as connected:
        for payload in payloads:
            connected.peer.send(*(frame(TEXT, payload.encode(), mask=key) for key in keys))
            assert [connected.peer.text() for _ in keys] == [payload] * len(keys)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_a_frame_without_a_mask_fails_the_connection(open_socket: Open, opcode: int) -> None:
    for payload in (b"", b"\x03\xe8abc"):
        fails_with(open_socket, 1002, frame(opcode, payload, mask=None))


def test_a_continuation_without_a_mask_fails_the_connection(open_socket: Open) -> None:
    fails_with(open_socket, 1002, frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b", mask=None))


# §5.2 base framing


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, PING, PONG, CLOSE])
def test_a_reserved_bit_fails_the_connection(open_socket: Open, opcode: int) -> None:
    before = frame(TEXT, b"a", fin=False) if opcode == CONTINUATION else b""
    for reserved in range(1, 8):
        fails_with(open_socket, 1002, before, frame(opcode, reserved=reserved))


def test_a_reserved_opcode_fails_the_connection(open_socket: Open) -> None:
    for opcode in (0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF):
        fails_with(open_socket, 1002, frame(opcode, b"a"))


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536])
def test_lengths_at_the_borders_of_their_encodings(open_socket: Open, size: int) -> None:
    payload = bytes(random.Random(size).choices(b"abcdefgh", k=size))
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, payload), frame(BINARY, payload))
        assert connected.messages(2) == [payload.decode(), payload]


@pytest.mark.parametrize(("size", "length_bytes"), [(0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_length_in_more_bytes_than_needed_fails_the_connection(
    open_hub_socket: Open, opcode: int, size: int, length_bytes: int
) -> None:
    # The websockets library takes any encoding of a length.
    fails_with(open_hub_socket, 1002, frame(opcode, b"a" * size, length_bytes=length_bytes))


@pytest.mark.parametrize("claimed", [1 << 63, (1 << 63) + 5, (1 << 64) - 1])
def test_a_length_of_64_bits_fails_the_connection(open_socket: Open, by_hub: bool, claimed: int) -> None:
    # To the websockets library it is a large number like others.
    fails_with(open_socket, 1002 if by_hub else 1009, frame(BINARY, claimed=claimed, length_bytes=8))


@pytest.mark.parametrize("websocket_class", CLASSES)
@pytest.mark.parametrize("size", [0, 1, 126, 65_536])
async def test_a_frame_may_be_cut_at_every_byte(websocket_class: WebSocketClass, size: int) -> None:
    payload = b"abcdefgh" * (size // 8) + b"x" * (size % 8)
    data = frame(TEXT, payload)
    ping = frame(PING, b"!")
    stream, second = data + ping + data, len(data) + len(ping)
    for cut in range(1, min(20, len(data))):
        direct = await Direct(websocket_class).open()
        direct.receive(stream[:cut], stream[cut : second + cut], stream[second + cut :])
        assert direct.messages == [payload.decode()] * 2
        assert direct.written == b"\x8a\x01!"
        direct.lost()


@pytest.mark.parametrize("websocket_class", CLASSES)
async def test_frames_may_arrive_one_byte_at_a_time(websocket_class: WebSocketClass) -> None:
    stream = [frame(TEXT, b"a"), frame(BINARY, bytes(130), fin=False), frame(PING, b"?"), frame(CONTINUATION, b"b")]
    direct = await Direct(websocket_class).open()
    direct.receive(*(bytes([byte]) for byte in b"".join(stream) + close_frame(1000)))
    assert direct.messages == ["a", bytes(130) + b"b"]
    assert direct.written == b"\x8a\x01?" + b"\x88\x02\x03\xe8"
    assert direct.ends == 1
    assert direct.transport.closed
    direct.lost()


def test_many_messages_in_one_piece_keep_their_order(open_socket: Open) -> None:
    texts = [str(number) for number in range(2_000)]
    with open_socket() as connected:
        connected.peer.send(b"".join(frame(TEXT, text.encode()) for text in texts))
        assert connected.messages(len(texts)) == texts
        assert [connected.peer.text() for _ in texts] == texts


# §5.4 fragmentation


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_fragments_are_one_message(open_socket: Open, opcode: int) -> None:
    pieces = [b"", b"first ", b"", b"second ", b"y" * 300, b""]
    frames = [
        frame(CONTINUATION if index else opcode, piece, fin=index == len(pieces) - 1)
        for index, piece in enumerate(pieces)
    ]
    whole = b"".join(pieces)
    with open_socket() as connected:
        connected.peer.send(*frames, *frames)
        assert connected.messages(2) == [whole.decode() if opcode == TEXT else whole] * 2


def test_a_message_of_empty_fragments_is_empty(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION))
        assert connected.messages(1) == [""]


def test_control_frames_between_fragments_are_answered_at_once(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"hel", fin=False), frame(PING, b"one"), frame(PONG, b"unasked"))
        assert connected.peer.frame() == Frame(PONG, b"one")
        connected.peer.send(frame(CONTINUATION, b"l", fin=False), frame(PING), frame(CONTINUATION, b"o"))
        assert connected.peer.frame() == Frame(PONG, b"")
        assert connected.peer.text() == "hello"


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_fails_the_connection(open_socket: Open, fin: bool) -> None:
    fails_with(open_socket, 1002, frame(CONTINUATION, b"a", fin=fin))


def test_a_continuation_after_the_last_fragment_fails_the_connection(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b"))
        assert connected.peer.text() == "ab"
        connected.peer.send(frame(CONTINUATION, b"c"))
        assert connected.peer.closed() == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_new_message_inside_another_fails_the_connection(open_socket: Open, opcode: int, fin: bool) -> None:
    fails_with(open_socket, 1002, frame(TEXT, b"a", fin=False), frame(opcode, b"b", fin=fin))


def test_a_close_may_come_between_fragments(open_socket: Open, by_hub: bool) -> None:
    # §5.4 has control frames in the middle of a message; to the websockets library this close is an error.
    fails_with(open_socket, 1001 if by_hub else 1002, frame(TEXT, b"a", fin=False), close_frame(1001))


async def test_empty_fragments_hold_no_memory() -> None:
    # They would never exceed the limit of a message's size.
    direct = await Direct(HubWebSocketProtocol).open()
    direct.receive(frame(TEXT, b"a", fin=False))
    many = frame(CONTINUATION, fin=False) * 2_000
    direct.receive(many)
    tracemalloc.start()
    direct.receive(many)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    direct.receive(frame(CONTINUATION, b"b"))
    assert direct.messages == ["ab"]
    assert grown < 2_000  # a byte for each
    direct.lost()


# The limit of a message's size: §7.4.1 1009, §10.4


def test_a_message_as_large_as_the_limit_is_taken(open_socket: Open) -> None:
    half = b"x" * (LIMIT // 2)
    with open_socket() as connected:
        connected.peer.send(frame(BINARY, half + half))
        connected.peer.send(frame(BINARY, half, fin=False), frame(CONTINUATION, half, fin=False), frame(CONTINUATION))
        assert connected.messages(2) == [half + half] * 2


@pytest.mark.parametrize("claimed", [LIMIT + 1, 1 << 32, (1 << 63) - 1])
def test_a_larger_message_is_refused_at_its_header(open_socket: Open, claimed: int) -> None:
    fails_with(open_socket, 1009, frame(BINARY, claimed=claimed))


def test_fragments_are_refused_at_the_header_with_which_they_exceed_the_limit(open_socket: Open) -> None:
    most = frame(TEXT, b"x" * (LIMIT - 10), fin=False) + frame(CONTINUATION, b"y" * 10, fin=False)
    fails_with(open_socket, 1009, most, frame(PONG), frame(CONTINUATION, claimed=1))


def test_a_new_message_begins_with_the_whole_limit(open_socket: Open) -> None:
    whole = frame(BINARY, b"x" * LIMIT)
    with open_socket() as connected:
        connected.peer.send(frame(BINARY, b"x" * 60_000, fin=False), frame(CONTINUATION, b"x" * 5_000), whole, whole)
        assert [len(message) for message in connected.messages(3)] == [65_000, LIMIT, LIMIT]


def test_who_sends_a_far_too_large_message_still_reads_the_code(open_hub_socket: Open) -> None:
    # §7.1.1: closing while the client still sends resets the connection, and the close frame is lost with it.
    with open_hub_socket() as connected:
        peer = connected.peer
        peer.send(frame(BINARY, claimed=3_000_000), bytes(3_000_000))
        assert peer.closed() == 1009


@pytest.mark.parametrize("websocket_class", CLASSES)
@pytest.mark.parametrize(("of_uvicorn", "of_hub", "limit"), [(100, 200, 100), (200, 100, 100)])
async def test_the_limit_is_the_lower_of_uvicorns_and_the_hubs(
    settings: Settings, websocket_class: WebSocketClass, of_uvicorn: int, of_hub: int, limit: int
) -> None:
    settings.HUB_MAX_MESSAGE_BYTES = of_hub
    direct = await Direct(websocket_class, ws_max_size=of_uvicorn).open()
    direct.receive(frame(TEXT, b"x" * limit))
    assert direct.messages == ["x" * limit]
    direct.receive(frame(TEXT, claimed=limit + 1))
    assert direct.written[2:4] == (1009).to_bytes(2, "big")
    direct.lost()


# §5.5 control frames


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_of_more_than_125_bytes_fails_the_connection(open_socket: Open, opcode: int) -> None:
    for size, length_bytes in ((126, 2), (126, 8), (65_535, 2), (65_536, 8)):
        fails_with(open_socket, 1002, frame(opcode, b"\x03\xe8" + b"x" * (size - 2), length_bytes=length_bytes))


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_with_a_longer_length_than_needed_fails_the_connection(
    open_hub_socket: Open, opcode: int
) -> None:
    for length_bytes in (2, 8):
        fails_with(open_hub_socket, 1002, frame(opcode, b"\x03\xe8", length_bytes=length_bytes))


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_in_fragments_fails_the_connection(open_socket: Open, opcode: int) -> None:
    fails_with(open_socket, 1002, frame(opcode, b"\x03\xe8", fin=False))


@pytest.mark.parametrize("payload", [b"", b"?", bytes(range(125)), b"\xff\xfe not text"])
def test_a_ping_is_answered_with_its_payload(open_socket: Open, payload: bytes) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(PING, payload))
        assert connected.peer.frame() == Frame(PONG, payload)


def test_every_ping_is_answered_in_its_order(open_socket: Open) -> None:
    payloads = [str(number).encode() for number in range(100)]
    with open_socket() as connected:
        connected.peer.send(b"".join(frame(PING, payload) for payload in payloads))
        assert [connected.peer.frame() for _ in payloads] == [Frame(PONG, payload) for payload in payloads]


def test_a_pong_that_nobody_asked_for_is_ignored(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(PONG), frame(PONG, b"x" * 125), frame(TEXT, b"on"))
        assert connected.messages(1) == ["on"]
        assert connected.peer.text() == "on"


@pytest.mark.parametrize("how", ["echo", "session"])
def test_a_ping_after_the_servers_close_is_still_answered(server: Server, how: str) -> None:
    # §5.5.2: a pong is owed until a close frame was received.
    with server.open(f"/{how}") as connected:
        connected.peer.send(frame(TEXT, b"close"))
        assert connected.peer.frame().opcode == CLOSE
        connected.peer.send(frame(PING, b"still here"))
        assert connected.peer.frame() == Frame(PONG, b"still here")


def test_the_session_can_ping(server: Server) -> None:
    with server.open("/session") as connected:
        connected.peer.send(frame(TEXT, b"ping"))
        opcode, payload, fin = connected.peer.frame()
        assert (opcode, fin) == (PING, True)
        connected.peer.send(frame(PONG, payload), frame(TEXT, b"on"))
        assert connected.peer.text() == "on"


# §5.5.1 and §7: closing


@pytest.mark.parametrize("reason", ["", "schön", "x" * 123])
def test_a_close_is_answered_with_its_code_and_then_the_server_closes(open_socket: Open, reason: str) -> None:
    # §7.4.2 leaves 1012 to 1014 to IANA's registry, which has them.
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999):
        with open_socket() as connected:
            connected.peer.send(close_frame(code, reason.encode()))
            assert connected.peer.closed() == code
            event = connected.event()
            assert event in (None, {"type": "websocket.disconnect", "code": code, "reason": reason})


def test_a_close_without_a_code_is_answered_without_one(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(close_frame())
        assert connected.peer.closed() is None
        event = connected.event()
        assert event is None or event["code"] == 1005  # §7.1.5


def test_a_close_code_that_may_not_be_sent_fails_the_connection(open_socket: Open) -> None:
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 32_768, 65_535):
        fails_with(open_socket, 1002, close_frame(code))  # §7.4


def test_a_close_of_one_byte_fails_the_connection(open_socket: Open) -> None:
    fails_with(open_socket, 1002, frame(CLOSE, b"\x03"))


@pytest.mark.parametrize("reason", [b"\xff", b"ok \xc3", b"\xed\xa0\x80"])
def test_a_reason_that_is_not_utf8_fails_the_connection(open_socket: Open, reason: bytes) -> None:
    fails_with(open_socket, 1007, close_frame(1000, reason))  # §8.1


@pytest.mark.parametrize("websocket_class", CLASSES)
async def test_nothing_after_a_close_is_read(websocket_class: WebSocketClass) -> None:
    direct = await Direct(websocket_class).open()
    direct.receive(frame(TEXT, b"before") + close_frame(1000) + frame(TEXT, b"after") + frame(PING) + close_frame(1001))
    direct.receive(frame(TEXT, b"later"))
    assert (direct.messages, direct.ends) == (["before"], 1)
    assert direct.written == b"\x88\x02\x03\xe8"
    assert direct.transport.closed
    direct.lost()


def test_nothing_after_a_failure_is_read(open_socket: Open) -> None:
    fails_with(open_socket, 1002, frame(0x3), frame(TEXT, b"after"), frame(PING), close_frame(1000))  # §7.1.7


def test_the_server_closes_with_its_code_and_waits_for_the_answer(open_socket: Open) -> None:
    with open_socket() as connected:
        peer = connected.peer
        peer.send(frame(TEXT, b"before"))
        assert peer.text() == "before"
        # What is still on its way when the close is sent is nobody's any more (§1.4).
        peer.send(frame(TEXT, b"close") + frame(BINARY, b"after"))
        assert peer.frame() == Frame(CLOSE, GOODBYE.code.to_bytes(2, "big") + b"goodbye")
        peer.send(frame(TEXT, b"late"), close_frame(GOODBYE.code))
        peer.ends()
        assert connected.messages(2) == ["before", "close"]


def test_the_answer_is_read_though_the_application_had_not_taken_all_messages(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"close") + frame(TEXT, b"unread") * 500)
        assert connected.peer.frame().opcode == CLOSE
        connected.peer.socket.settimeout(2)  # far less than an answer that does not come is waited for
        connected.peer.send(close_frame(GOODBYE.code))
        connected.peer.ends()


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, b"\x03\xe8"),
        ({"code": 4000}, b"\x0f\xa0"),
        ({"code": 4000, "reason": None}, b"\x0f\xa0"),
        ({"code": 3999, "reason": "x" * 123}, b"\x0f\x9f" + b"x" * 123),
    ],
)
def test_an_application_closes_with_its_code_and_reason(server: Server, asked: dict[str, Any], sent: bytes) -> None:
    with server.open("/echo") as connected:
        connected.peer.send(frame(TEXT, json.dumps(asked).encode()))
        assert connected.peer.frame() == Frame(CLOSE, sent)


def test_a_reason_too_long_for_a_frame_is_cut_between_characters(hub_server: Server) -> None:
    # The websockets library raises.
    with hub_server.open("/echo") as connected:  # §5.5
        connected.peer.send(frame(TEXT, json.dumps({"code": 4000, "reason": "ä" * 200}).encode()))
        assert connected.peer.frame() == Frame(CLOSE, b"\x0f\xa0" + "ä".encode() * 61)


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000, 70_000])
def test_no_code_that_may_not_be_sent_is_ever_sent(hub_server: Server, code: int) -> None:
    # With the websockets library the connection ends without a close frame.
    with quiet(), hub_server.open("/echo") as connected:  # §7.4.1
        connected.peer.send(frame(TEXT, json.dumps({"code": code}).encode()))
        assert connected.peer.frame().payload[:2] == (1011).to_bytes(2, "big")


@pytest.mark.parametrize(("path", "code"), [("/break_", 1011), ("/leave", 1000)])
def test_an_application_that_ends_without_a_close_is_closed_for(
    server: Server, by_hub: bool, path: str, code: int
) -> None:
    with quiet(), server.open(path) as connected:
        if by_hub:
            assert connected.peer.closed() == code
        else:
            connected.peer.ends()  # uvicorn sends no close frame


def test_the_server_stops_with_a_code(server: Server) -> None:
    running = Server(server.websocket_class)
    with running.open("/echo") as ordinary, running.open("/session") as session:
        running.server.should_exit = True
        assert ordinary.peer.frame().payload[:2] == (1012).to_bytes(2, "big")
        assert session.peer.frame().payload[:2] == codes.SHUTDOWN.code.to_bytes(2, "big")
        session.peer.send(close_frame(codes.SHUTDOWN.code))
        session.peer.ends()
        assert (session.event(), session.event()) == (codes.SHUTDOWN, None)
        assert ordinary.event()["code"] == 1012
    running.stop()


# §7.1.1, §7.1.7, §7.2.1: peers that do not answer, do not read, or are gone


@pytest.mark.usefixtures("_short_grace")
@pytest.mark.parametrize("how", ["echo", "session"])
def test_a_peer_that_does_not_answer_a_close_is_gone_after_the_grace_time(
    server: Server, by_hub: bool, how: str
) -> None:
    if not by_hub:
        how = "session"  # where an application closes, uvicorn has a grace time of its own
    with server.open(f"/{how}") as connected:
        connected.peer.send(frame(TEXT, b"close"))
        assert connected.peer.frame().opcode == CLOSE
        connected.peer.send(frame(TEXT, b"more"), frame(PONG))
        connected.peer.socket.settimeout(2)
        connected.peer.ends()
        eventually(lambda: server.connections == 0)


@pytest.mark.usefixtures("_short_grace")
def test_a_peer_that_stops_reading_is_gone_after_the_grace_time(server: Server) -> None:
    # transport.close() alone waits until all is taken: the connection would stay, and all that it holds.
    with server.open("/session", receive_buffer=4096) as connected:
        connected.peer.send(frame(TEXT, b"stall"))
        assert connected.event() == "stall"
        eventually(lambda: server.connections == 0, seconds=3)


@pytest.mark.usefixtures("_short_grace")
def test_a_peer_that_breaks_the_protocol_and_stops_reading_is_gone_and_told_of(hub_server: Server) -> None:
    # The fallback waits for the peer to read.
    with hub_server.open("/session", receive_buffer=4096) as connected:
        connected.peer.send(frame(TEXT, b"fill"), frame(0x3))
        assert connected.event() == "fill"
        assert connected.event() is None
        eventually(lambda: hub_server.connections == 0, seconds=3)


def test_a_peer_that_does_not_answer_uvicorns_pings_is_gone(server: Server, by_hub: bool) -> None:
    running = Server(server.websocket_class, ws_ping_interval=0.1, ws_ping_timeout=0.2)
    with running.open("/echo") as connected:
        for _ in range(3):
            opcode, payload, _ = connected.peer.frame()
            assert (opcode, len(payload)) == (PING, 4)
            connected.peer.send(frame(PONG, payload))
        assert connected.peer.frame().opcode == PING
        connected.peer.send(frame(PONG, b"else"))
        assert connected.peer.closed() == 1011
        assert connected.event()["code"] == (1011 if by_hub else 1005)
        eventually(lambda: running.connections == 0)
    running.stop()


def test_a_peer_that_vanishes_is_told_of(server: Server, open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"a"), frame(TEXT, b"half", fin=False))
        assert connected.messages(1) == ["a"]
        connected.peer.vanish()
        assert connected.ended()
        eventually(lambda: server.connections == 0)


def test_a_peer_that_closes_the_connection_without_a_close_frame_is_told_of(
    server: Server, by_hub: bool, open_socket: Open
) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"a"))
        assert connected.peer.text() == "a"
        connected.peer.socket.close()
        assert connected.messages(1) == ["a"]
        event = connected.event()
        # §7.1.5: no close frame is 1006.
        assert event is None or event["code"] == (1006 if by_hub else 1005)
        eventually(lambda: server.connections == 0)


def test_a_peer_that_shuts_down_its_side_still_reads_what_was_written(server: Server, open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"a"))
        assert connected.peer.text() == "a"
        connected.peer.socket.shutdown(1)
        assert connected.messages(1) == ["a"]
        assert connected.ended()
        connected.peer.ends()
        eventually(lambda: server.connections == 0)


def test_the_end_is_told_once(server: Server) -> None:
    with server.open("/session") as connected:
        connected.peer.send(close_frame(1000))
        assert connected.peer.closed() == 1000
        eventually(lambda: server.connections == 0)
        assert connected.event() is None
        assert connected.application.events[connected.number].empty()


# §8.1 text is UTF-8

BAD_TEXTS = [
    b"\xff",
    b"ok \xc3",
    b"\xc3(",
    b"\xa9",
    b"\xc0\xaf",  # overlong
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # a surrogate
    b"\xf4\x90\x80\x80",  # beyond U+10FFFF
    b"\xf0\x9f\x98",
]


def test_text_that_is_not_utf8_fails_the_connection(open_socket: Open) -> None:
    for bad in BAD_TEXTS:
        fails_with(open_socket, 1007, frame(TEXT, bad))


def test_text_in_fragments_that_is_not_utf8_fails_the_connection(open_socket: Open) -> None:
    for bad in BAD_TEXTS:
        frames = [frame(CONTINUATION, bytes([byte]), fin=False) for byte in bad]
        fails_with(open_socket, 1007, frame(TEXT, b"good", fin=False), *frames, frame(CONTINUATION))


def test_a_character_may_be_split_over_fragments(open_socket: Open) -> None:
    text = "κόσμε \U0001f600 \U0010ffff"
    data = text.encode()
    with open_socket() as connected:
        for cut in range(len(data) + 1):
            connected.peer.send(frame(TEXT, data[:cut], fin=False), frame(PING), frame(CONTINUATION, data[cut:]))
            assert connected.messages(1) == [text]


def test_binary_messages_may_hold_anything(open_socket: Open) -> None:
    with open_socket() as connected:
        connected.peer.send(*(frame(BINARY, bad) for bad in BAD_TEXTS))
        assert connected.messages(len(BAD_TEXTS)) == BAD_TEXTS


# What the server sends, as wsproto reads it; `Peer.frame` has looked at masks, reserved bits and lengths (§5.1, §5.2)

SIZES = [0, 1, 125, 126, 127, 65_535, 65_536]


def read_by_wsproto(data: bytes) -> list[str | bytes]:
    client = wsproto.connection.Connection(wsproto.connection.CLIENT)
    client.receive_data(data)
    messages: list[str | bytes] = []
    for event in client.events():
        assert isinstance(event, wsproto.events.TextMessage | wsproto.events.BytesMessage), event
        assert event.message_finished
        messages.append(event.data)
    return messages


@pytest.mark.parametrize("websocket_class", CLASSES)
async def test_frames_joined_in_one_write_are_read_as_they_were_given(websocket_class: WebSocketClass) -> None:
    texts = ["x" * size for size in SIZES] + ["schön", ""]
    direct = await Direct(websocket_class).open()
    direct.protocol.write([direct.protocol.framing(text.encode()) for text in texts])
    assert len(direct.transport.written) == 1
    assert read_by_wsproto(direct.written) == texts
    direct.lost()


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_all_lengths_are_minimal_and_unmasked(open_socket: Open, size: int) -> None:
    with open_socket() as connected:
        connected.peer.send(frame(TEXT, b"x" * size))
        assert connected.peer.frame() == Frame(TEXT, b"x" * size)


@pytest.mark.parametrize("size", SIZES)
def test_binary_frames_of_all_lengths_are_minimal_and_unmasked(server: Server, size: int) -> None:
    with server.open("/echo") as connected:
        connected.peer.send(frame(BINARY, b"\xff" * size))
        assert connected.peer.frame() == Frame(BINARY, b"\xff" * size)


def test_frames_of_a_session_are_one_piece_on_the_wire(server: Server) -> None:
    with server.open("/session") as connected:
        connected.peer.send(frame(TEXT, json.dumps(["x" * 200, "", "schön"]).encode()))
        assert [connected.peer.text() for _ in range(3)] == ["x" * 200, "", "schön"]


@pytest.mark.parametrize("websocket_class", CLASSES)
async def test_nothing_is_written_after_a_close_frame(websocket_class: WebSocketClass) -> None:
    direct = await Direct(websocket_class).open()  # §5.5.1
    direct.protocol.close(GOODBYE)
    assert direct.written == b"\x88\x09\x10\xe1goodbye"
    direct.protocol.write([direct.protocol.framing(b"late")])
    direct.protocol.ping()
    direct.protocol.close(GOODBYE)
    assert direct.written == b"\x88\x09\x10\xe1goodbye"
    direct.lost()
    direct.protocol.write([b"later"])


def test_requests_on_one_server_do_not_disturb_each_other(server: Server) -> None:
    with server.open("/echo") as first, server.open("/session") as second:
        first.peer.send(frame(TEXT, b"a", fin=False))
        second.peer.send(frame(TEXT, b"b", fin=False))
        peer, response = server.ask(request("/deny"))
        with peer:
            assert response.status == 403
        first.peer.send(frame(CONTINUATION, b"1"))
        second.peer.send(frame(CONTINUATION, b"2"))
        assert (first.peer.text(), second.peer.text()) == ("a1", "b2")
