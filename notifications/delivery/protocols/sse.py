"""Server-Sent Events: `EventSource` in a browser, `curl -N` in a shell.

Source: the HTML standard, "Server-sent events". An event's id is the cursor to resume from; on a stream of one
topic it is `epoch:offset`, on one of several topics it names each of them, form-encoded, so that one
`Last-Event-ID` resumes all. A stream begins with an id, so that it can be resumed before its first event; one
that was resumed tells with the event `hub.resume` whether anything could not be had any more.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.protocols.base import AskedTopicsOnly
from notifications.delivery.session import Session
from notifications.delivery.subscription import Subscription
from notifications.events.event import Cursor, EncodedEvent

RETRY_MILLISECONDS = 3_000


class StreamedEvent(bytes):
    """The lines of an event without its id, which is the session's when its stream has several topics."""

    topic: str
    cursor: Cursor


class StreamState:
    """What the protocol remembers of one session: the cursors of its topics."""

    __slots__ = ("cursors",)

    def __init__(self) -> None:
        self.cursors: dict[str, Cursor] = {}


class StreamSession(Session):
    """A session on a stream; it puts its own id before each event."""

    __slots__ = ()

    def send_frame(self, frame: bytes) -> None:
        if isinstance(frame, StreamedEvent):
            cursors: dict[str, Cursor] = self.state.cursors
            if frame.cursor.offset:
                cursors[frame.topic] = frame.cursor
                frame = b"id: " + encode_cursors(cursors).encode() + b"\n" + frame
        super().send_frame(frame)


class ServerSentEvents(AskedTopicsOnly):
    """Events as `text/event-stream`; nothing is received."""

    name = "sse"
    answers_pings = False

    def new_state(self) -> StreamState:
        return StreamState()

    def opened(self, session: Session) -> None:
        session.switchboard.identified(session)
        session.connected = True

    def received(self, session: Session, data: bytes | str) -> None:
        """A stream has one direction."""

    def encode_event(self, event: EncodedEvent) -> bytes:
        # JSON text has no raw line breaks in strings, and msgspec writes none between tokens; what came in over
        # HTTP was encoded by us as well. So the data is one line.
        head = f"event: {event.type}\n" if event.type else ""
        frame = StreamedEvent(head.encode() + b"data: " + bytes(event.data) + b"\n\n")
        frame.topic, frame.cursor = event.topic, event.cursor
        return frame

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        return None

    def encode_ping(self) -> bytes:
        return b": ping\n\n"

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        # The client connects again with its last id, and is told by `hub.resume` what it missed.
        lost = code is codes.UNSUBSCRIBED_INSUFFICIENT_STATE
        session.disconnect(codes.INSUFFICIENT_STATE if lost else codes.NOT_PERMITTED)

    def closing(self, session: Session, code: Code) -> bytes | None:
        return f"retry: {RETRY_MILLISECONDS}\n: closed, {code.code} {code.reason}\n\n".encode()


SSE = ServerSentEvents()


def encode_cursors(cursors: dict[str, Cursor]) -> str:
    """The id that resumes a stream of these topics."""
    positions = {topic: f"{cursor.epoch}:{cursor.offset}" for topic, cursor in cursors.items()}
    if len(positions) == 1:
        return next(iter(positions.values()))
    return urlencode(positions)


def decode_cursors(text: str, topics: list[str]) -> dict[str, Cursor]:
    """The cursors of an id, for those of `topics` that it names. What is not an id of ours resumes nothing."""
    pairs = parse_qsl(text) if "=" in text else [(topics[0], text)] if len(topics) == 1 else []
    cursors = {}
    for topic, position in pairs:
        epoch, _, offset = position.rpartition(":")
        if topic in topics and offset.isdecimal() and len(offset) < 19:
            cursors[topic] = Cursor(int(offset), epoch)
    return cursors


def opening(cursors: dict[str, Cursor], complete: bool | None) -> bytes:
    """The first lines of a stream; `complete` is None when nothing was to be resumed."""
    lines = f"retry: {RETRY_MILLISECONDS}\nid: {encode_cursors(cursors)}\n\n" if cursors else ":\n\n"
    if complete is not None:
        resumed = msgspec.json.encode({"complete": complete}).decode()
        lines += f"event: hub.resume\ndata: {resumed}\n\n"
    return lines.encode()
