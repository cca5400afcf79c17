"""What the WebSocket classes make of any bytes of a client, compared with `wsproto`.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import wsproto.connection
import wsproto.events
import wsproto.extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from notifications.server.messages import apply_mask
from notifications.server.sansio import SansIOWebSocketProtocol
from notifications.server.websocket import HubWebSocketProtocol
from tests.server.rigs import CLASSES, Direct, WebSocketClass
from tests.server.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, masked, parsed, request

EXAMPLES = int(os.environ.get("HUB_FUZZ_EXAMPLES", "0"))
LIMIT = 1_000

fuzzed = settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Sent(NamedTuple):
    """A frame of a client, with what its header says of it."""

    opcode: int
    payload: bytes
    fin: bool = True
    reserved: int = 0
    mask: bytes | None = b"\x01\x02\x03\x04"
    length_bytes: int | None = None
    claimed: int | None = None

    @property
    def length(self) -> int:
        return len(self.payload) if self.claimed is None else self.claimed

    @property
    def bytes(self) -> bytes:
        return frame(
            self.opcode,
            self.payload,
            fin=self.fin,
            reserved=self.reserved,
            mask=self.mask,
            length_bytes=self.length_bytes,
            claimed=self.claimed,
        )


class Outcome(NamedTuple):
    """What came of the bytes: messages delivered, pongs written, and the code of the close frame that was written.

    The code is None while the connection is open, and 1005 for a close frame without one.
    """

    messages: list[str | bytes]
    pongs: list[bytes]
    code: int | None


# What clients send

masks = st.binary(min_size=4, max_size=4)
texts = st.text(max_size=20).map(str.encode) | st.sampled_from([b"", b"a", "\U0001f600".encode()])
broken = st.binary(max_size=6) | st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f"])
bordering = st.sampled_from([124, 125, 126, 127, 128, LIMIT - 1, LIMIT]).map(lambda size: b"b" * size)
payloads = texts | st.tuples(texts, broken, texts).map(b"".join) | bordering


@st.composite
def messages(draw: st.DrawFn) -> list[Sent]:
    """A message in fragments, cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, TEXT, BINARY]))
    payload = draw(texts | payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    frames = []
    for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
        frames.append(
            Sent(CONTINUATION if index else opcode, payload[start:end], fin=index == len(cuts), mask=draw(masks))
        )
        if index < len(cuts):
            frames += draw(st.lists(controls, max_size=1))
    return frames


controls = st.builds(
    Sent, st.sampled_from([PING, PONG]), st.binary(max_size=8) | st.just(b"p" * 125), st.just(True), st.just(0), masks
)
codes = st.sampled_from([0, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1012, 1013, 1014, 1015, 1016, 2999])
closes = st.builds(
    lambda code, reason, mask: Sent(CLOSE, code.to_bytes(2, "big") + reason, mask=mask),
    codes | st.sampled_from([3000, 4999, 5000, 65_535]) | st.integers(0, 65_535),
    st.just(b"") | texts.map(lambda text: text[:20]) | broken,
    masks,
) | st.binary(max_size=1).map(lambda payload: Sent(CLOSE, payload))
#: Frames that are wrong, or out of place, each in its own way.
wrong = st.one_of(
    st.builds(Sent, st.integers(0, 15), payloads, st.booleans(), st.integers(0, 7), masks),
    st.builds(Sent, st.sampled_from([CONTINUATION, TEXT, BINARY]), payloads, st.booleans()),
    st.builds(Sent, st.sampled_from([TEXT, PING, CLOSE]), st.binary(max_size=3), mask=st.none()),
    st.builds(Sent, st.sampled_from([PING, PONG, CLOSE]), st.just(b"x" * 126) | st.just(b""), st.booleans()),
)
misencoded = st.builds(Sent, st.sampled_from([TEXT, BINARY, PING]), payloads, length_bytes=st.sampled_from([2, 8]))
oversized = st.builds(
    Sent,
    st.sampled_from([TEXT, BINARY, CONTINUATION]),
    st.binary(max_size=3),
    st.booleans(),
    claimed=st.sampled_from([LIMIT + 1, 65_535, 65_536, 1 << 40]),
)
immense = st.builds(Sent, st.just(BINARY), st.just(b""), claimed=st.just(1 << 63), length_bytes=st.just(8))


def streams(websocket_class: WebSocketClass) -> st.SearchStrategy[list[Sent]]:
    """Frames of a client, most of them right."""
    parts = [messages(), messages(), messages(), controls.map(lambda sent: [sent])]
    odd = [closes, wrong, oversized]
    if websocket_class is HubWebSocketProtocol:
        # The websockets library takes lengths in any encoding, against §5.2.
        odd += [misencoded, immense]
    parts.append(st.one_of(*odd).map(lambda sent: [sent]))
    return st.lists(st.one_of(*parts), max_size=6).map(lambda drawn: [sent for part in drawn for sent in part])


# What wsproto makes of them


def acceptable_code(sent: Sent) -> bool:
    """Whether a frame closes with 1014, which IANA's registry has by §7.4.2, and wsproto refuses."""
    return sent.opcode == CLOSE and sent.payload[:2] == (1014).to_bytes(2, "big")


def too_big(sent: Sent, so_far: int | None) -> bool:
    """Whether a frame, right in all else, exceeds the limit, of which wsproto has none; §7.4.1 has 1009 for it."""
    return (
        sent.opcode in (CONTINUATION, TEXT, BINARY)
        and not sent.reserved
        and sent.mask is not None
        and sent.bytes == sent._replace(length_bytes=None).bytes
        and sent.length < 1 << 63
        and (sent.opcode == CONTINUATION) is (so_far is not None)
        and (so_far or 0) + sent.length > LIMIT
    )


def expected(stream: list[Sent], *, early: bool) -> Outcome:
    """What wsproto makes of frames, but for the rules in which it differs.

    It refuses bad UTF-8 in the first fragment that has it; §8.1 leaves open whether that is done there (`early`) or
    at the end of the message, which is got out of wsproto by telling it that all messages are binary.
    """
    server = wsproto.connection.Connection(wsproto.connection.SERVER)
    messages: list[str | bytes] = []
    pongs: list[bytes] = []
    parts: list[str | bytes] = []
    so_far: int | None = None
    is_text = False
    for sent in stream:
        if too_big(sent, so_far):
            return Outcome(messages, pongs, 1009)
        if acceptable_code(sent):
            sent = sent._replace(payload=(4014).to_bytes(2, "big") + sent.payload[2:])
        told = sent
        if sent.opcode == TEXT and so_far is None:
            is_text = True
            told = sent if early else sent._replace(opcode=BINARY)
        elif sent.opcode == BINARY and so_far is None:
            is_text = False
        if sent.claimed is not None and sent.claimed < 1 << 63:
            # wsproto looks at a frame's place once its payload comes, and none of these is in its place.
            told = told._replace(claimed=None, payload=b"z")
        server.receive_data(told.bytes)
        for event in server.events():
            match event:
                case wsproto.events.TextMessage() | wsproto.events.BytesMessage():
                    parts.append(event.data)
                    if event.message_finished:
                        whole = (b"" if isinstance(parts[0], bytes) else "").join(parts)  # type: ignore[arg-type]
                        parts = []
                        if is_text and isinstance(whole, bytes):
                            try:
                                whole = whole.decode()
                            except UnicodeDecodeError:
                                return Outcome(messages, pongs, 1007)
                        messages.append(whole)
                case wsproto.events.Ping(payload=payload):
                    pongs.append(bytes(payload))
                case wsproto.events.CloseConnection(code=code):
                    return Outcome(messages, pongs, 1014 if code == 4014 else int(code))
        if sent.opcode in (CONTINUATION, TEXT, BINARY):
            so_far = None if sent.fin else (so_far or 0) + sent.length
    return Outcome(messages, pongs, None)


# What the class makes of them


async def outcome(websocket_class: WebSocketClass, data: bytes, cuts: list[int]) -> Outcome:
    direct = await Direct(websocket_class, ws_max_size=LIMIT).open()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    direct.receive(*(data[start:end] for start, end in pairwise(edges) if start < end))
    pongs, code, written = [], None, direct.written
    while (found := parsed(written)) is not None:
        (opcode, payload, _), written = found
        assert code is None, "written after a close frame"
        if opcode == PONG:
            pongs.append(payload)
        else:
            assert opcode == CLOSE
            payload[2:].decode()
            code = int.from_bytes(payload[:2], "big") if payload else 1005
    assert written == b""
    if websocket_class is HubWebSocketProtocol:
        # uvicorn tells of an end when the connection is lost, and writes on in one case that does no harm.
        assert direct.ends == (code is not None)
        assert not direct.transport.written_late
    direct.lost()
    assert direct.ends == 1
    assert not direct.state.connections
    return Outcome(direct.messages, pongs, code)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.mark.parametrize("websocket_class", CLASSES)
def test_any_bytes_are_read_as_wsproto_reads_them(
    websocket_class: WebSocketClass, loop: asyncio.AbstractEventLoop
) -> None:
    @settings(fuzzed, max_examples=EXAMPLES or (800 if websocket_class is HubWebSocketProtocol else 250))
    @given(stream=streams(websocket_class), cuts=st.lists(st.integers(0, 5_000), max_size=12))
    def compare(stream: list[Sent], cuts: list[int]) -> None:
        data = b"".join(sent.bytes for sent in stream)
        if websocket_class is SansIOWebSocketProtocol:
            # It parses a piece to the end before it delivers, drops the messages before bytes that break the
            # protocol, and goes by what is behind bad text.
            cuts = [*cuts, *accumulate(len(sent.bytes) for sent in stream)]
        got = loop.run_until_complete(outcome(websocket_class, data, cuts))
        allowed = [expected(stream, early=True), expected(stream, early=False)]
        if websocket_class is SansIOWebSocketProtocol:
            assert any(alike(got, each, stream) for each in allowed), (got, allowed)
        else:
            assert got in allowed

    compare()


def alike(got: Outcome, other: Outcome, stream: list[Sent]) -> bool:
    """Whether the fallback did the same, but for what the websockets library does otherwise."""
    if got.code == 1009 and any(sent.opcode in (PING, PONG, CLOSE) for sent in stream):
        # It counts control frames between the fragments of a message towards the limit.
        return got.messages == other.messages[: len(got.messages)] and got.pongs == other.pongs[: len(got.pongs)]
    codes = {other.code}
    if other.code is not None and any(sent.opcode == CLOSE for sent in stream):
        # A close in the middle of a message is an error to it, and of a close that is wrong twice it tells the other.
        codes |= {1002, 1007}
    if other.code is not None and any(sent.length > LIMIT or sent.reserved for sent in stream):
        # It looks at the size before it looks at all that §5.2 forbids.
        codes |= {1002, 1009}
    return got._replace(code=None) == other._replace(code=None) and got.code in codes


@pytest.mark.parametrize("websocket_class", CLASSES)
def test_a_stream_that_ends_anywhere_is_read_up_to_there(
    websocket_class: WebSocketClass, loop: asyncio.AbstractEventLoop
) -> None:
    whole = [Sent(TEXT, b"a" * 130, fin=False), Sent(PING, b"?"), Sent(CONTINUATION, b"b"), Sent(BINARY, b"c" * 3)]
    data = b"".join(sent.bytes for sent in whole)
    ends = [sum(len(sent.bytes) for sent in whole[: index + 1]) for index in range(len(whole))]
    for size in range(len(data) + 1):
        complete = [sent for sent, end in zip(whole, ends, strict=True) if end <= size]
        got = loop.run_until_complete(outcome(websocket_class, data[:size], []))
        assert got == expected(complete, early=False)


# permessage-deflate (RFC 7692) without context takeover, as the hub agrees on it

compressible = st.text(max_size=40).map(lambda text: text * 8) | st.just("x" * LIMIT)


def deflated(payload: bytes) -> bytes:
    """A compressed payload, as a client sends it."""
    deflating = zlib.compressobj(wbits=-15)
    return (deflating.compress(payload) + deflating.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.fixture
def _compressing(settings: Settings) -> None:
    settings.HUB_WEBSOCKET_DEFLATE = True


@pytest.mark.usefixtures("_compressing")
@settings(fuzzed, max_examples=EXAMPLES or 100)
@given(texts=st.lists(compressible, max_size=5), cut=st.integers(0, 30), step=st.integers(1, 200))
def test_compressed_messages_are_exchanged_with_wsproto(
    loop: asyncio.AbstractEventLoop, texts: list[str], cut: int, step: int
) -> None:
    texts = [text for text in texts if len(text.encode()) <= LIMIT]

    async def exchange() -> None:
        direct = Direct(HubWebSocketProtocol, ws_max_size=LIMIT)
        answer = await direct.ask(request("/", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        assert answer is not None
        extension = wsproto.extensions.PerMessageDeflate()
        extension.finalize(answer.all("sec-websocket-extensions")[0].partition(";")[2])
        client = wsproto.connection.Connection(wsproto.connection.CLIENT, [extension])
        data = b""
        for text in texts:
            data += client.send(wsproto.events.TextMessage(data=text[:cut], message_finished=False))
            data += client.send(wsproto.events.Ping(payload=b"!"))
            data += client.send(wsproto.events.TextMessage(data=text[cut:]))
        direct.receive(*(data[start : start + step] for start in range(0, len(data), step)))
        assert direct.messages == texts
        assert direct.written == b"\x8a\x01!" * len(texts)
        direct.transport.written.clear()
        direct.protocol.write([direct.protocol.framing(text.encode()) for text in texts])
        client.receive_data(direct.written)
        assert [event.data for event in client.events()] == texts  # type: ignore[attr-defined]
        direct.lost()

    loop.run_until_complete(exchange())


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        ([Sent(TEXT, deflated(b"x" * LIMIT), reserved=4)], None),
        # A small frame that is large once it is decompressed.
        ([Sent(TEXT, deflated(b"x" * (LIMIT + 1)), reserved=4)], 1009),
        ([Sent(BINARY, deflated(bytes(1_000_000)), reserved=4)], 1009),
        ([Sent(TEXT, deflated(b"\xff"), reserved=4)], 1007),
        ([Sent(TEXT, b"\xff\xff\xff", reserved=4)], 1007),
        ([Sent(TEXT, deflated(b"a"), reserved=6)], 1002),
        # RFC 7692 §6: the bit is set on the first fragment, and never on a control frame.
        ([Sent(TEXT, deflated(b"a"), fin=False, reserved=4), Sent(CONTINUATION, b"")], None),
        ([Sent(TEXT, deflated(b"a"), fin=False, reserved=4), Sent(CONTINUATION, b"", reserved=4)], 1002),
        ([Sent(TEXT, b"a", fin=False), Sent(CONTINUATION, deflated(b"b"), reserved=4)], 1002),
        ([Sent(PING, b"", reserved=4)], 1002),
        ([Sent(CLOSE, b"", reserved=4)], 1002),
        ([Sent(TEXT, b"plain"), Sent(BINARY, b"plain")], None),
    ],
)
@pytest.mark.usefixtures("_compressing")
def test_compressed_messages_break_no_rule(
    loop: asyncio.AbstractEventLoop, stream: list[Sent], code: int | None
) -> None:
    async def judge() -> None:
        direct = Direct(HubWebSocketProtocol, ws_max_size=LIMIT)
        await direct.ask(request("/", "Sec-WebSocket-Extensions: permessage-deflate"))
        direct.receive(b"".join(sent.bytes for sent in stream))
        if code is None:
            assert len(direct.messages) == sum(sent.fin for sent in stream)
            assert direct.written == b""
        else:
            assert direct.written[2:4] == code.to_bytes(2, "big")
            assert (direct.messages, direct.ends) == ([], 1)
        direct.lost()

    loop.run_until_complete(judge())


def test_the_masks_of_these_tests_are_the_rfcs() -> None:
    assert masked(b"Hello", b"\x37\xfa\x21\x3d") == b"\x7f\x9f\x4d\x51\x58"  # §5.7


def test_masks_are_taken_off_by_compiled_code_where_the_library_has_it() -> None:
    compiled = pytest.importorskip("websockets.speedups")

    assert apply_mask is compiled.apply_mask
