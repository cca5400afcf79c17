"""The two forms of the Centrifuge protocol's messages: lines of JSON, and binary ones with their length before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec
from msgspec import Raw

from notifications.delivery.fossil import create_delta
from notifications.delivery.protocols import protobuf
from notifications.delivery.protocols.schema import Command, Publication, Push, Reply

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command).decode


class Codec(Protocol):
    """Turns what is received into commands, and replies into what is sent."""

    binary: bool

    def commands(self, data: bytes | str) -> Iterator[Command]:
        """The commands in one message of the transport, in their order; raises ValueError at one that is not valid."""
        ...

    def encode(self, reply: Reply) -> bytes:
        """A reply; replies may be joined."""
        ...

    def encode_publication(self, topic: str, publication: Publication) -> bytes:
        """The push of a publication."""
        ...

    def delta(self, data: Raw, base: Raw | None) -> tuple[Raw, bool]:
        """What to send of a payload to clients that have `base`, and whether it is a delta (else the whole)."""
        ...


class _PublicationPush(msgspec.Struct, frozen=True):
    channel: str
    pub: Publication


class _Push(msgspec.Struct, frozen=True):
    push: _PublicationPush


class JsonCodec:
    """One JSON object per line."""

    binary = False

    def commands(self, data: bytes | str) -> Iterator[Command]:
        text = data if isinstance(data, str) else data.decode()
        for line in text.strip("\n").split("\n"):
            try:
                yield _decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise ValueError(f"not a command: {error}") from error

    def encode(self, reply: Reply) -> bytes:
        return _encode(reply)

    def encode_publication(self, topic: str, publication: Publication) -> bytes:
        # Instead of a Reply, of whose many fields the encoder would have to find the few that are set.
        return _encode(_Push(_PublicationPush(topic, publication)))

    def delta(self, data: Raw, base: Raw | None) -> tuple[Raw, bool]:
        """The text of the payload, or of its delta, as a JSON string: a delta is no JSON by itself."""
        whole = bytes(data)
        if base is not None and len(delta := create_delta(bytes(base), whole)) < len(whole):
            return Raw(_encode(delta.decode())), True
        return Raw(_encode(whole.decode())), False


class ProtobufCodec:
    """Protocol buffers, each message after its length."""

    binary = True

    def commands(self, data: bytes | str) -> Iterator[Command]:
        if isinstance(data, str):
            raise ValueError("a text where binary messages are spoken")
        yield from protobuf.decode_commands(data)

    def encode(self, reply: Reply) -> bytes:
        return protobuf.framed(protobuf.encode_reply(reply))

    def encode_publication(self, topic: str, publication: Publication) -> bytes:
        return self.encode(Reply(push=Push(channel=topic, pub=publication)))

    def delta(self, data: Raw, base: Raw | None) -> tuple[Raw, bool]:
        if base is not None and len(delta := create_delta(bytes(base), bytes(data))) < len(bytes(data)):
            return Raw(delta), True
        return data, False


JSON = JsonCodec()
PROTOBUF = ProtobufCodec()
