"""Frames: an event encoded for one wire protocol and one transport, once per process, shared by all receivers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.protocols.base import WireProtocol

Framing = Callable[[bytes], bytes]


def websocket_text(payload: bytes) -> bytes:
    """An unmasked, uncompressed WebSocket text frame (RFC 6455 §5.2), as servers send them."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 65_536:
        return struct.pack("!BBH", 0x81, 126, length) + payload
    return struct.pack("!BBQ", 0x81, 127, length) + payload


def unframed(payload: bytes) -> bytes:
    """The payload itself, for transports whose server does the framing."""
    return payload


class Encoding:
    """How the events of sessions with one protocol on one kind of transport are encoded.

    There is one object per pair, so that sessions which share it share their frames.
    """

    __slots__ = ("framing", "protocol")

    _known: dict[tuple[str, Framing], Encoding] = {}

    def __init__(self, protocol: WireProtocol, framing: Framing) -> None:
        self.protocol = protocol
        self.framing = framing

    @classmethod
    def of(cls, protocol: WireProtocol, framing: Framing) -> Encoding:
        """The encoding of a protocol with a framing."""
        pair = (protocol.name, framing)
        if pair not in cls._known:
            cls._known[pair] = cls(protocol, framing)
        return cls._known[pair]

    def frame(self, event: EncodedEvent) -> bytes:
        """The event as its receivers get it."""
        return self.framing(self.protocol.encode_event(event))

    def presence_frame(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        """A join or leave as its receivers get it, or None where their protocol has none."""
        payload = self.protocol.encode_presence(topic, action, info)
        return None if payload is None else self.framing(payload)
