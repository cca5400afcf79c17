"""Hostile input: any frames at sessions of a real switchboard.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from msgspec import Raw
from pytest_django import Settings

from notifications.delivery import switchboard
from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, unframed
from notifications.delivery.identity import ANONYMOUS
from notifications.delivery.protocols.centrifuge import CENTRIFUGE, CENTRIFUGE_PROTOBUF, CentrifugeProtocol
from notifications.delivery.protocols.plain import PLAIN
from notifications.delivery.protocols.schema import Command, ConnectRequest, SendRequest, method_of
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from tests.delivery.declared import declared
from tests.delivery.test_protobuf import commands, message_of, serialized
from tests.delivery.watched import (
    EXAMPLES,
    Facts,
    WatchedClient,
    a_switchboard,
    errors_in,
    fuzzed,
    is_idle,
    leftovers,
    of_protocol,
    part,
    until,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _declared(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    monkeypatch.setattr(switchboard, "LINGER_SECONDS", 0.005)
    with declared():
        yield


CONNECT = serialized(message_of(Command(id=1, connect=ConnectRequest())))

# What clients may send

ODD_TEXTS = ["kept:1", "kept:" + "x" * 300, "kept:\0", "kept:\u2028", "\ud800", "null", "#1", "$kept:1", " kept:1"]
ODD_NUMBERS = [-1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1.0, 1e308, float("inf"), float("nan")]
odd_values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_TEXTS) | st.sampled_from(ODD_NUMBERS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
channels = st.sampled_from(["kept:1", "cached:1", "fleeting:1", "asked:1", "ledger:1", "denied:1", "unknown:1"])
node = {"op": "and", "key": "room", "cmp": "in", "val": "a", "vals": ["a"], "nodes": []}
REQUESTS: dict[str, dict[str, Any]] = {
    "connect": {"token": "x", "data": {}, "subs": {"kept:1": {"recover": True}}, "name": "js", "headers": {"a": "b"}},
    "subscribe": {
        "token": "",
        "recover": True,
        "offset": 0,
        "epoch": "",
        "data": {},
        "positioned": True,
        "recoverable": True,
        "join_leave": True,
        "delta": "fossil",
        "tf": node,
        "flag": 2,
        "type": 0,
    },
    "unsubscribe": {},
    "publish": {"data": {"number": 1}},
    "presence": {},
    "presence_stats": {},
    "history": {"limit": 10, "since": {"offset": 1, "epoch": ""}, "reverse": True},
    "ping": {},
    "send": {"data": 1},
    "rpc": {"method": "fuzz.echo", "data": 1},
    "refresh": {"token": "x"},
    "sub_refresh": {"token": "x"},
}


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A command as text, with something odd in it."""
    method = draw(st.sampled_from(sorted(REQUESTS)))
    request: Any = {"channel": draw(channels), **REQUESTS[method]}
    for field in draw(st.lists(st.sampled_from(sorted(request)), max_size=3)):
        if draw(st.booleans()):
            request[field] = draw(odd_values)
        else:
            request.pop(field, None)
    command = {"id": draw(st.integers(1, 9) | odd_values), method: draw(st.just(request) | odd_values)}
    text = json.dumps(command, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        return text
    again = draw(
        st.sampled_from(['"id":1', f'"{method}":{{}}', '"connect":null', '"publish":{"data":', '"a":' + "[" * 5_000])
    )
    return draw(st.sampled_from([f"{text[:-1]},{again}}}", f" \t{text}\r", f"{text} ", f"\ufeff{text}", text[:-1]]))


damage = st.lists(
    st.tuples(st.integers(0, 10_000), st.text(st.characters(), max_size=2), st.integers(0, 3)), max_size=2
)
separators = st.sampled_from(["\n", "\n", "\n\n", "\r\n", "\0", "\u2028"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """What a client may send as one message: lines, whole or damaged, or anything."""
    text = draw(separators).join(draw(st.lists(lines(), min_size=1, max_size=3)))
    for position, inserted, removed in draw(st.just([]) | damage):
        at = position % (len(text) + 1)
        text = text[:at] + inserted + text[at + removed :]
    return text


raws = st.text(st.characters(), max_size=40)


@st.composite
def binaries(draw: st.DrawFn) -> bytes:
    """The same in the binary form, where data need not be JSON."""
    data = b""
    for command in draw(st.lists(commands, min_size=1, max_size=3)):
        message = message_of(command)
        held = getattr(message, method_of(command) or "connect")
        if hasattr(held, "channel") and draw(st.booleans()):
            held.channel = draw(channels)
        if hasattr(held, "method") and draw(st.booleans()):
            held.method = "fuzz.echo"
        if hasattr(held, "data") and draw(st.booleans()):
            held.data = draw(
                st.binary(max_size=8) | st.sampled_from([b'"\\ud800"', b'"\xff"', b"NaN", b"1e999", b"[" * 99])
            )
        data += serialized(message)
    for position, inserted, removed in draw(st.just([]) | damage):
        at = position % (len(data) + 1)
        data = data[:at] + inserted.encode(errors="replace") + data[at + removed :]
    return data


class FuzzedClient(WatchedClient):
    """A client that knows nothing of what it has asked for: it only reads whether it is answered properly."""

    def __init__(self, switchboard: Switchboard, protocol: CentrifugeProtocol) -> None:
        self.errors: list[int] = []
        super().__init__(switchboard, protocol, ANONYMOUS, Facts([]))

    def _take(self, reply: Any) -> None:
        error = part(reply, "error")
        if error is not None:
            assert of_protocol(error.code), f"answered with {error}"
            self.errors.append(error.code)


async def feed_all(messages: Sequence[str | bytes], session: Session) -> None:
    """Feed messages to a session, wait until nothing is under way any more, and close it."""
    board = session.switchboard
    for message in messages:
        session.feed(message)
        await asyncio.sleep(0)
    await until(lambda: is_idle(board, [session]) and not session.outgoing, lambda: leftovers(board, [session]))
    session.closed()
    await until(lambda: not leftovers(board, [session]), lambda: leftovers(board, [session]))


@settings(fuzzed, max_examples=EXAMPLES or 120)
@given(
    messages=st.lists(texts() | texts() | raws | st.binary(max_size=3), min_size=1, max_size=4), connects=st.booleans()
)
async def test_any_text_is_answered_or_ends_the_session(
    messages: list[str | bytes], connects: bool, caplog: pytest.LogCaptureFixture
) -> None:
    note(f"{messages=} {connects=}")
    caplog.clear()
    async with a_switchboard() as board:
        client = FuzzedClient(board, CENTRIFUGE)
        await feed_all(['{"id":1,"connect":{}}', *messages] if connects else messages, client.session)
    assert (errors_in(caplog), client.facts.violations) == ([], [])


@settings(fuzzed, max_examples=EXAMPLES or 120)
@given(messages=st.lists(binaries() | binaries() | st.binary(max_size=40) | raws, min_size=1, max_size=4))
async def test_any_bytes_are_answered_or_end_the_session(
    messages: list[bytes | str], caplog: pytest.LogCaptureFixture
) -> None:
    note(f"{messages=}")
    caplog.clear()
    async with a_switchboard() as board:
        client = FuzzedClient(board, CENTRIFUGE_PROTOBUF)
        await feed_all([CONNECT, *messages], client.session)
    assert (errors_in(caplog), client.facts.violations) == ([], [])


class PlainClient:
    """A page that speaks the plain protocol."""

    framing: Framing = staticmethod(unframed)
    congested = False

    def __init__(self, board: Switchboard) -> None:
        self.told: list[dict[str, Any]] = []
        self.session = Session(board, PLAIN, self)
        self.session.state.topic = "kept:plain"
        self.session.opened()

    def write(self, frames: list[bytes]) -> None:
        self.told += map(json.loads, frames)

    def pending(self) -> int:
        return 0

    def ping(self) -> None:
        """Nobody listens."""

    def close(self, code: Code) -> None:
        raise AssertionError(f"closed with {code}")


@settings(fuzzed, max_examples=EXAMPLES or 60)
@given(messages=st.lists(texts() | raws | st.binary(max_size=40) | odd_values.map(json.dumps), max_size=6))
async def test_anything_is_a_message_of_the_plain_protocol_or_an_error(
    messages: list[str | bytes], caplog: pytest.LogCaptureFixture
) -> None:
    note(f"{messages=}")
    caplog.clear()
    async with a_switchboard() as board:
        client = PlainClient(board)
        for message in messages:
            client.session.feed(message)
        await until(lambda: len(client.told) > len(messages), lambda: client.told)
        await feed_all([], client.session)
    assert client.told[0]["type"] == "connection_established"
    assert {told["type"] for told in client.told[1:]} <= {"chat", "error"}
    assert len(client.told) == 1 + len(messages)
    assert errors_in(caplog) == []


# What the examples found


@pytest.mark.parametrize("data", [b"NaN", b'"\xff"', b"1e999", b"\x03"])
async def test_a_message_that_is_no_json_is_refused_and_no_failure_of_the_hub(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_switchboard() as board:
        client = FuzzedClient(board, CENTRIFUGE_PROTOBUF)
        await feed_all([CONNECT, serialized(message_of(Command(id=2, send=SendRequest(Raw(data)))))], client.session)

    assert (client.errors, errors_in(caplog)) == ([107], [])
