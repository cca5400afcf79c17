"""Clients in the process of the test that hold all they are sent against what they asked for, whatever the order.

They speak each form of the Centrifuge protocol, wait for nothing, and fail the test at the first frame that no client
should get. What a frame alone cannot tell, that nothing was left out, is for `unserved()` to find at the end.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from centrifuge import fossil
from centrifuge.protocol import client_pb2
from google.protobuf import proto
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, unframed
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.centrifuge import CentrifugeProtocol
from notifications.delivery.protocols.schema import Command, Reply
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.events import Cursor, Event
from notifications.events.topics import resolve
from tests.delivery.test_protobuf import message_of, serialized

EXAMPLES = int(os.environ.get("HUB_FUZZ_EXAMPLES", "0"))
WAIT_SECONDS = 5.0

fuzzed = settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

CODES = {code.code for code in vars(codes).values() if isinstance(code, Code)}


def part(message: Any, name: str) -> Any:
    """A message in a message of either codec; None where it is not set."""
    if isinstance(message, Message):
        return getattr(message, name) if message.HasField(name) else None
    return getattr(message, name)


def replies(frame: bytes, *, binary: bool) -> list[Any]:
    """What a frame of the hub says, as clients of the protocol read it."""
    if not binary:
        return [msgspec.json.decode(line, type=Reply) for line in frame.split(b"\n")]
    stream, found = io.BytesIO(frame), []
    while stream.tell() < len(frame):
        found.append(proto.parse_length_prefixed(client_pb2.Reply, stream))
    return found


def of_protocol(code: int) -> bool:
    """Whether a code is one of the protocol, and does not say that the hub has failed."""
    return code in CODES and code not in (codes.INTERNAL.code, codes.SERVER_ERROR.code)


class Facts:
    """What happened in truth."""

    def __init__(self, recorder: Sequence[Event]) -> None:
        # What `start_recording()` returned. Events of the durable log have no offset in it.
        self._recorder = recorder
        #: What was published, or was asked to be, by the number in its data; and who was not to get it.
        self.published: dict[int, Event] = {}
        self.excluded: dict[int, str] = {}
        #: Where clients were told that an event is.
        self.places: dict[int, Cursor] = {}
        #: What clients were sent that they should not be.
        self.violations: list[Exception] = []
        #: What the durable log has, when all is over.
        self.stored: list[Event] = []

    def new(self, topic: str, *, tags: dict[str, str] | None = None, exclude: str = "") -> Event:
        """An event to be published."""
        number = len(self.published)
        data = {"number": number, "filler": [f"the same in all {place}" for place in range(5)]}
        event = self.published[number] = Event(topic=topic, type="message", data=data, tags=tags)
        self.excluded[number] = exclude
        return event

    def after(self, topic: str, epoch: str, offset: int) -> list[Event]:
        """The events of one run of a topic after an offset."""
        events = [event for event in [*self._recorder, *self.stored] if event.topic == topic and event.epoch == epoch]
        return [event for event in events if (event.offset or 0) > offset]


class Seen:
    """A subscription as its client knows it."""

    def __init__(self, topic: str, result: Any, *, filtered: bool = False, replays: bool = False) -> None:
        self.topic = topic
        self.kept = resolve(topic).retention.kept
        self.epoch: str = result.epoch
        self.offset: int = result.offset
        self.delta = bool(getattr(result, "delta", False))
        self.filtered = filtered
        # Whether events come as pushes that were published before, to whomever.
        self.replays = replays
        self.payload = b""
        self.numbers: set[int] = set()
        #: The number of the first frame that may not have anything for it any more.
        self.ends_at: int | None = None

    def wants(self, event: Event) -> bool:
        return not self.filtered or (event.tags or {}).get("room") == "a"


class WatchedClient:
    """A client, and its transport."""

    framing: Framing = staticmethod(unframed)
    congested = False

    def __init__(
        self, switchboard: Switchboard, protocol: CentrifugeProtocol, identity: Identity, facts: Facts
    ) -> None:
        self.facts = facts
        self.binary = protocol.binary
        self.closed_with: Code | None = None
        self.frames = 0
        #: What awaits its answer: the method and the request by the number of the command.
        self.asked: dict[int, tuple[str, dict[str, Any]]] = {}
        self.seen: dict[str, Seen] = {}
        #: Where the client was on a topic that it left, as (epoch, offset).
        self.left: dict[str, tuple[str, int]] = {}
        self._numbers = itertools.count(1)
        self.session = Session(switchboard, protocol, self, identity)
        self.session.opened()

    @property
    def open(self) -> bool:
        return self.session.closed_with is None

    # What the session does with its transport.

    def write(self, frames: list[bytes]) -> None:
        try:
            assert self.closed_with is None, "something is written to a closed transport"
            for frame in frames:
                for reply in replies(frame, binary=self.binary):
                    self._take(reply)
                self.frames += 1
        except Exception as error:  # whatever the hub makes of a transport that fails, the test has to know
            self.facts.violations.append(error)
            raise

    def pending(self) -> int:
        return 0

    def ping(self) -> None:
        """Nobody listens."""

    def close(self, code: Code) -> None:
        if self.closed_with is not None or not of_protocol(code.code):
            self.facts.violations.append(AssertionError(f"closed with {code} after {self.closed_with}"))
        self.closed_with = code

    # What the client does.

    def send(self, method: str, /, **request: Any) -> None:
        """Send a command, and wait for nothing."""
        number = next(self._numbers)
        text = msgspec.json.encode({"id": number, method: request})
        if method == "unsubscribe" and request["channel"] in self.seen:
            # What the session has for its client in this turn was sent before the command came.
            seen = self.seen[request["channel"]]
            seen.ends_at = seen.ends_at or self.frames + len(self.session.outgoing)
        if self.open and method != "send":
            self.asked[number] = (method, request)
        if self.binary:
            self.session.feed(serialized(message_of(msgspec.json.decode(text, type=Command))))
        else:
            self.session.feed(text.decode())

    def pong(self) -> None:
        self.session.feed(b"\x00" if self.binary else "{}")

    def close_transport(self) -> None:
        """Go away, as a closed socket does."""
        self.session.closed()

    # What the client is told.

    def _take(self, reply: Any) -> None:
        if (push := part(reply, "push")) is not None:
            self._take_push(push)
        elif reply.id:
            self._take_answer(reply)

    def _take_answer(self, reply: Any) -> None:
        assert reply.id in self.asked, f"an answer to no command, or a second one: {reply}"
        method, request = self.asked.pop(reply.id)
        topic = request.get("channel", "")
        if (error := part(reply, "error")) is not None:
            assert of_protocol(error.code), f"{method} {request}: {error}"
            return
        result = part(reply, method)
        assert result is not None, f"{method} is answered with {reply}"
        if method == "connect":
            for name, subscribed in result.subs.items():
                self._subscribed(name, Seen(name, subscribed), subscribed, {})
        elif method == "subscribe":
            self._subscribed(topic, Seen(topic, result, filtered="tf" in request), result, request)
        elif method == "unsubscribe":
            self._leave(topic)
        elif method == "history":
            for publication in result.publications:
                assert self._event_of(bytes(publication.data)).topic == topic

    def _subscribed(self, topic: str, seen: Seen, result: Any, request: dict[str, Any]) -> None:
        assert topic not in self.seen, f"subscribed to {topic} twice"
        self.seen[topic] = seen
        end = seen.offset
        newest = resolve(topic).declaration.recovery == "cache"
        if newest:
            seen.offset -= len(result.publications)
        assert len(result.publications) == 0 or result.recovered
        if result.recovered and not newest:
            assert end == request["offset"]
        for publication in result.publications:
            self._publication(seen, publication, recovered=True)

    def _take_push(self, push: Any) -> None:
        topic = push.channel
        if (subscribe := part(push, "subscribe")) is not None:
            assert topic not in self.seen, f"subscribed to {topic} twice"
            self.seen[topic] = Seen(topic, subscribe, replays=True)
        elif part(push, "unsubscribe") is not None:
            self._leave(topic)
        elif part(push, "message") is None and part(push, "disconnect") is None and part(push, "refresh") is None:
            seen = self.seen.get(topic)
            assert seen is not None, f"not subscribed to {topic}: {push}"
            assert seen.ends_at is None or self.frames < seen.ends_at, f"unsubscribed from {topic}: {push}"
            if (publication := part(push, "pub")) is not None:
                self._publication(seen, publication)

    def _leave(self, topic: str) -> None:
        seen = self.seen.pop(topic, None)
        if seen is not None:
            self.left[topic] = (seen.epoch, seen.offset)

    def _event_of(self, payload: bytes) -> Event:
        data = json.loads(payload)
        event = self.facts.published[data["number"]]
        assert event.data == data
        return event

    def _publication(self, seen: Seen, publication: Any, *, recovered: bool = False) -> None:
        payload = bytes(publication.data)
        assert seen.delta or not publication.delta
        if seen.delta:
            if not self.binary:
                payload = json.loads(payload).encode()
            payload = fossil.apply_delta(seen.payload, payload) if publication.delta else payload
            seen.payload = payload
        event = self._event_of(payload)
        number = event.data["number"]
        assert event.topic == seen.topic
        assert seen.wants(event), f"filtered out: {event}"
        if not recovered and not seen.replays:
            assert self.facts.excluded.get(number) != self.session.id, f"excluded: {event}"
        assert number not in seen.numbers, f"delivered twice: {event}"
        seen.numbers.add(number)
        if not seen.kept:
            return
        place = Cursor(publication.offset, seen.epoch)
        assert self.facts.places.setdefault(number, place) == place
        assert publication.offset > seen.offset
        lacking = [event for event in self.unserved(seen) if (event.offset or 0) < publication.offset]
        assert not lacking, f"left out before {publication.offset}: {lacking}"
        seen.offset = publication.offset

    def unserved(self, seen: Seen) -> list[Event]:
        """What the client should have been sent of a topic, and was not."""
        mine = self.session.id
        events = self.facts.after(seen.topic, seen.epoch, seen.offset) if seen.kept else []
        return [
            event
            for event in events
            if seen.wants(event) and self.facts.excluded.get(event.data["number"]) != mine and seen.ends_at is None
        ]


async def until(condition: Callable[[], Any], explained: Callable[[], Any]) -> None:
    """Wait for a condition; what keeps it from being true is in the failure."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explained()
        await asyncio.sleep(0.001)


@asynccontextmanager
async def a_switchboard() -> AsyncIterator[Switchboard]:
    """A switchboard that nobody else uses."""
    board = Switchboard()
    await board.start()
    try:
        yield board
    finally:
        await board.stop()


def is_idle(board: Switchboard, sessions: Iterable[Session]) -> bool:
    """Whether nothing is under way for the sessions."""
    return not board._tasks and not any(session._task or session.beside for session in sessions)


def leftovers(board: Switchboard, sessions: Sequence[Session]) -> dict[str, Any]:
    """What a switchboard still has of sessions that are closed, and they of themselves."""
    held = {
        "sessions": board.sessions,
        "users": dict(board.sessions_of_user),
        "emulated": board.emulated,
        "subscriptions": board.subscriptions,
        "topics": board.topics,
        "due": [board.wheel._due, board.expiries._due, board.wheel._slots, board.expiries._slots],
        "tasks": board._tasks,
        "commands": [session.commands or session._task or session.beside for session in sessions],
        "of sessions": [session.subscriptions for session in sessions],
    }
    return {name: found for name, found in held.items() if (any(found) if isinstance(found, list) else found)}


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
