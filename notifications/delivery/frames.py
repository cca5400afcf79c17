"""Frames: an event encoded for one wire protocol and one transport, once per process, shared by all receivers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.protocols.base import WireProtocol

Framing = Callable[[bytes], bytes]

DEFLATE_WINDOW_BITS = 12
DEFLATE_LEAST_BYTES = 256


_DEFLATE_LEVEL, _DEFLATE_MEMORY = 6, 8


def websocket_frame(first: int, payload: bytes) -> bytes:
    """An unmasked WebSocket frame (RFC 6455 §5.2), as servers send them; `first` is its first byte."""
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", first, 126, length) + payload
    return struct.pack("!BBQ", first, 127, length) + payload


def websocket_text(payload: bytes) -> bytes:
    """A whole text message, uncompressed."""
    return websocket_frame(0x81, payload)


def websocket_deflated_text(payload: bytes) -> bytes:
    """A whole text message, compressed when that is worth it, for permessage-deflate without context takeover.

    It depends on nothing sent before, so that all receivers can share it (RFC 7692 §7.2.1).
    """
    if len(payload) < DEFLATE_LEAST_BYTES:
        return websocket_text(payload)
    return websocket_frame(0xC1, _deflated(payload))


def _deflated(payload: bytes) -> bytes:
    deflating = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -DEFLATE_WINDOW_BITS, _DEFLATE_MEMORY)
    return (deflating.compress(payload) + deflating.flush(zlib.Z_SYNC_FLUSH))[:-4]


def websocket_binary(payload: bytes) -> bytes:
    """A whole binary message, uncompressed."""
    return websocket_frame(0x82, payload)


def websocket_deflated_binary(payload: bytes) -> bytes:
    """A whole binary message, compressed as `websocket_deflated_text()` does."""
    if len(payload) < DEFLATE_LEAST_BYTES:
        return websocket_binary(payload)
    return websocket_frame(0xC2, _deflated(payload))


def unframed(payload: bytes) -> bytes:
    """The payload itself, for transports whose server does the framing."""
    return payload


#: What makes frames of binary payloads where another framing makes them of texts.
_BINARY: dict[Framing, Framing] = {
    websocket_text: websocket_binary,
    websocket_deflated_text: websocket_deflated_binary,
}


class Encoding:
    """How the events of sessions with one protocol on one kind of transport are encoded.

    There is one object per pair, so that sessions which share it share their frames.
    """

    __slots__ = ("framing", "joins", "ping", "protocol")

    _known: dict[tuple[WireProtocol, Framing], Encoding] = {}

    def __init__(self, protocol: WireProtocol, framing: Framing) -> None:
        self.protocol = protocol
        self.framing = framing
        #: Whether frames can be told apart when they are joined; otherwise a server makes one message of each piece.
        self.joins = framing is not unframed
        ping = protocol.encode_ping()
        #: The ping that all sessions share, or None where the transport has its own.
        self.ping = None if ping is None else framing(ping)

    @classmethod
    def of(cls, protocol: WireProtocol, framing: Framing) -> Encoding:
        """The encoding of a protocol on a transport with this framing of texts."""
        if protocol.binary:
            framing = _BINARY.get(framing, framing)
        pair = (protocol, framing)
        if pair not in cls._known:
            cls._known[pair] = cls(protocol, framing)
        return cls._known[pair]

    def frame(self, event: EncodedEvent) -> bytes:
        """The event as its receivers get it."""
        return self.framing(self.protocol.encode_event(event))

    def pieces(self, events: Sequence[EncodedEvent]) -> list[bytes]:
        """The events as their receivers get them: one piece, if `joins`, or one for each."""
        frames = [self.frame(event) for event in events]
        return [b"".join(frames)] if self.joins and len(frames) > 1 else frames

    def presence_frame(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        """A join or leave as its receivers get it, or None where their protocol has none."""
        payload = self.protocol.encode_presence(topic, action, info)
        return None if payload is None else self.framing(payload)
