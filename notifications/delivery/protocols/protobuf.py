"""The binary form of the Centrifuge client protocol, made from the types in `schema.py`.

Source: the encoding of Protocol Buffers, version 3 of the language, and the field numbers of the public schema
(`client.proto`). Each message has its length before it, as a varint. Fields with a zero value are left out, unknown
ones are skipped, and of a field that came twice the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw, Struct, UnsetType

from notifications.delivery.protocols import schema
from notifications.delivery.protocols.schema import Command, EmulationRequest, Reply

#: How deep messages may be in each other; only filters of tags have no limit of their own.
MAX_DEPTH = 32

# The fields of the public schema. Not in it: `SubscribeRequest.type` and `Publication.epoch`.
NUMBERS: dict[type[Struct], dict[str, int]] = {
    schema.StreamPosition: {"offset": 1, "epoch": 2},
    schema.FilterNode: {"op": 1, "key": 2, "cmp": 3, "val": 4, "vals": 5, "nodes": 6},
    schema.SubscribeRequest: {
        "channel": 1, "token": 2, "recover": 3, "epoch": 6, "offset": 7, "data": 8, "positioned": 9,
        "recoverable": 10, "join_leave": 11, "delta": 12, "tf": 13, "flag": 14,
    },
    schema.ConnectRequest: {"token": 1, "data": 2, "subs": 3, "name": 4, "version": 5, "headers": 6, "flag": 7},
    schema.UnsubscribeRequest: {"channel": 1},
    schema.PublishRequest: {"channel": 1, "data": 2},
    schema.PresenceRequest: {"channel": 1},
    schema.PresenceStatsRequest: {"channel": 1},
    schema.HistoryRequest: {"channel": 1, "limit": 7, "since": 8, "reverse": 9},
    schema.PingRequest: {},
    schema.SendRequest: {"data": 1},
    schema.RpcRequest: {"data": 1, "method": 2},
    schema.RefreshRequest: {"token": 1},
    schema.SubRefreshRequest: {"channel": 1, "token": 2},
    schema.Command: {
        "id": 1, "connect": 4, "subscribe": 5, "unsubscribe": 6, "publish": 7, "presence": 8, "presence_stats": 9,
        "history": 10, "ping": 11, "send": 12, "rpc": 13, "refresh": 14, "sub_refresh": 15,
    },
    schema.EmulationRequest: {"node": 1, "session": 2, "data": 3},
    schema.ClientInfo: {"user": 1, "client": 2, "conn_info": 3, "chan_info": 4},
    schema.Publication: {"data": 4, "info": 5, "offset": 6, "tags": 7, "delta": 8},
    schema.Error: {"code": 1, "message": 2, "temporary": 3},
    schema.SubscribeResult: {
        "expires": 1, "ttl": 2, "recoverable": 3, "epoch": 6, "publications": 7, "recovered": 8, "offset": 9,
        "positioned": 10, "data": 11, "was_recovering": 12, "delta": 13,
    },
    schema.ConnectResult: {
        "client": 1, "version": 2, "expires": 3, "ttl": 4, "data": 5, "subs": 6, "ping": 7, "pong": 8, "session": 9,
        "node": 10, "time": 11,
    },
    schema.UnsubscribeResult: {},
    schema.PublishResult: {},
    schema.PresenceResult: {"presence": 1},
    schema.PresenceStatsResult: {"num_clients": 1, "num_users": 2},
    schema.HistoryResult: {"publications": 1, "epoch": 2, "offset": 3},
    schema.RpcResult: {"data": 1},
    schema.RefreshResult: {"client": 1, "version": 2, "expires": 3, "ttl": 4},
    schema.SubRefreshResult: {"expires": 1, "ttl": 2},
    schema.Join: {"info": 1},
    schema.Leave: {"info": 1},
    schema.Unsubscribe: {"code": 2, "reason": 3},
    schema.Message: {"data": 1},
    schema.Subscribe: {"recoverable": 1, "epoch": 4, "offset": 5, "positioned": 6, "data": 7},
    schema.Disconnect: {"code": 1, "reason": 2},
    schema.Refresh: {"expires": 1, "ttl": 2},
    schema.Push: {
        "channel": 2, "pub": 4, "join": 5, "leave": 6, "unsubscribe": 7, "message": 8, "subscribe": 9,
        "disconnect": 11, "refresh": 12,
    },
    schema.Reply: {
        "id": 1, "error": 2, "push": 4, "connect": 5, "subscribe": 6, "unsubscribe": 7, "publish": 8, "presence": 9,
        "presence_stats": 10, "history": 11, "rpc": 13, "refresh": 14, "sub_refresh": 15,
    },
}  # fmt: skip


def encode_reply(reply: Reply) -> bytes:
    """A reply without its length; a ping is empty."""
    return _encode(reply)


def framed(message: bytes) -> bytes:
    """A message with its length before it; a frame is any number of these."""
    return _varint(len(message)) + message


def decode_commands(data: bytes) -> list[Command]:
    """The commands of a frame, whose `data` is not looked into; raises ValueError for a frame that is not valid."""
    if not data:
        raise ValueError("A frame holds at least one message.")
    commands = []
    at = 0
    while at < len(data):
        message, at = _read_delimited(data, at)
        commands.append(_decode(Command, message, 1) if message else _PONG)
    return commands


def decode_emulation(data: bytes) -> EmulationRequest:
    """A request of an emulated transport, whose `data` is a frame; raises ValueError when it is not valid."""
    return _decode(EmulationRequest, data, 1)


# Wire types; the groups of older versions are not valid.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_TAG = 2**32 - 1

_SHORT_VARINTS = [bytes([number]) for number in range(0x80)]

_PONG = Command()

_encode_json = msgspec.json.Encoder().encode

_S = TypeVar("_S", bound=Struct)


class _Codec(NamedTuple):
    """How a value is written after its tag, and read from what follows the tag (a number or bytes) at a depth."""

    wire_type: int
    write: Callable[[Any], bytes]
    read: Callable[[Any, int], Any]


class _Field(NamedTuple):
    """A field of a message: `write` gives it with its tags, `collect` puts what was read among the others."""

    name: str
    wire_type: int
    write: Callable[[Any], bytes]
    read: Callable[[Any, int], Any]
    collect: Callable[[dict[str, Any], str, Any], None]


def _encode(message: Struct) -> bytes:
    parts = []
    for name, write in _WRITERS[type(message)]:
        value = getattr(message, name)
        if value is not None:
            parts.append(write(value))
    return b"".join(parts)


def _decode(kind: type[_S], data: bytes, depth: int) -> _S:
    return kind(**_read_fields(_FIELDS[kind], data, depth))


def _read_fields(fields: dict[int, _Field], data: bytes, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise ValueError(f"Messages are nested deeper than {MAX_DEPTH}.")
    values: dict[str, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if not number or tag > _MAX_TAG:
            raise ValueError(f"No field can have the number {number}.")
        payload: int | bytes
        if wire_type == _VARINT:
            payload, at = _read_varint(data, at)
        elif wire_type == _DELIMITED:
            payload, at = _read_delimited(data, at)
        elif wire_type in _FIXED_SIZES:
            payload, at = _read_bytes(data, at, _FIXED_SIZES[wire_type])
        else:
            raise ValueError(f"Field {number} has the wire type {wire_type}.")
        field = fields.get(number)
        if field is None:
            continue
        if wire_type != field.wire_type:
            raise ValueError(f"{field.name} has the wire type {wire_type} instead of {field.wire_type}.")
        field.collect(values, field.name, field.read(payload, depth))
    return values


def _varint(number: int) -> bytes:
    if 0 <= number < 0x80:
        return _SHORT_VARINTS[number]
    number &= 2**64 - 1  # a negative number has ten bytes, of whatever type it is
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ValueError("A message ends within a number.")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80 and number < 2**64:
            return number, at
    raise ValueError("A number has more than 64 bits.")


def _read_delimited(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _read_varint(data, at)
    return _read_bytes(data, at, length)


def _read_bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    end = at + length
    if end > len(data):
        raise ValueError(f"A message ends {end - len(data)} bytes too early.")
    return data[at:end], end


def _read_text(payload: bytes, depth: int) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise ValueError("Text is not UTF-8.") from error


def _write_json(value: Any) -> bytes:
    return framed(value if isinstance(value, Raw) else _encode_json(value))


_TEXT = _Codec(_DELIMITED, lambda value: framed(value.encode()), _read_text)
_BYTES = _Codec(_DELIMITED, framed, lambda payload, depth: payload)
_JSON = _Codec(_DELIMITED, _write_json, lambda payload, depth: Raw(payload))
_FLAG = _Codec(_VARINT, _varint, lambda number, depth: bool(number))


def _integer(lowest: int = -(2**63), highest: int = 2**63 - 1) -> _Codec:
    def read(number: int, depth: int) -> int:
        if number >= 2**63:
            number -= 2**64
        if not lowest <= number <= highest:
            raise ValueError(f"{number} is not between {lowest} and {highest}.")
        return number

    return _Codec(_VARINT, _varint, read)


def _message(kind: type[Struct]) -> _Codec:
    return _Codec(
        _DELIMITED,
        lambda message: framed(_encode(message)),
        lambda payload, depth: _decode(kind, payload, depth + 1),
    )


_SCALARS = {str: _TEXT, bytes: _BYTES, bool: _FLAG, int: _integer(), Raw: _JSON, Any: _JSON}


def _codec(kind: Any) -> _Codec:
    if get_origin(kind) is Annotated:
        bounds = get_args(kind)[1]
        return _integer(bounds.ge, bounds.le)
    return _SCALARS.get(kind) or _message(kind)


def _field(name: str, number: int, hint: Any) -> _Field:
    if isinstance(hint, UnionType):
        kinds = [kind for kind in get_args(hint) if kind not in (NoneType, UnsetType)]
        hint = bytes if bytes in kinds else kinds[0]
    if get_origin(hint) is list:
        return _repeated(name, number, _codec(get_args(hint)[0]))
    if get_origin(hint) is dict:
        return _mapping(name, number, _codec(get_args(hint)[1]))
    return _single(name, number, _codec(hint))


def _single(name: str, number: int, codec: _Codec) -> _Field:
    tag = _tag(number, codec)

    def write(value: Any) -> bytes:
        return tag + codec.write(value) if value or _is_json(value, codec) else b""

    return _Field(name, codec.wire_type, write, codec.read, dict.__setitem__)


def _is_json(value: Any, codec: _Codec) -> bool:
    # Zeros of other types are JSON of their own; UNSET and empty text are not.
    return codec is _JSON and not isinstance(value, (Raw, UnsetType))


def _repeated(name: str, number: int, codec: _Codec) -> _Field:
    tag = _tag(number, codec)

    def write(items: list[Any]) -> bytes:
        return b"".join([tag + codec.write(item) for item in items])

    def collect(values: dict[str, Any], name: str, item: Any) -> None:
        values.setdefault(name, []).append(item)

    return _Field(name, codec.wire_type, write, codec.read, collect)


def _mapping(name: str, number: int, codec: _Codec) -> _Field:
    """A mapping is written as messages of a key and a value, both of them also when they are zero."""
    tag, key_tag, value_tag = _tag(number, _TEXT), _tag(1, _TEXT), _tag(2, codec)
    fields = {1: _single("key", 1, _TEXT), 2: _single("value", 2, codec)}

    def write(mapping: dict[str, Any]) -> bytes:
        entries = [key_tag + _TEXT.write(key) + value_tag + codec.write(value) for key, value in mapping.items()]
        return b"".join([tag + framed(entry) for entry in entries])

    def read(payload: bytes, depth: int) -> tuple[str, Any]:
        entry = _read_fields(fields, payload, depth + 1)
        return entry.get("key", ""), entry["value"] if "value" in entry else codec.read(b"", depth)

    def collect(values: dict[str, Any], name: str, entry: tuple[str, Any]) -> None:
        key, value = entry
        values.setdefault(name, {})[key] = value

    return _Field(name, _DELIMITED, write, read, collect)


def _tag(number: int, codec: _Codec) -> bytes:
    return _varint(number << 3 | codec.wire_type)


def _fields_of(kind: type[Struct], numbers: dict[str, int]) -> dict[int, _Field]:
    hints = get_type_hints(kind, include_extras=True)
    return {number: _field(name, number, hints[name]) for name, number in sorted(numbers.items(), key=itemgetter(1))}


_FIELDS = {kind: _fields_of(kind, numbers) for kind, numbers in NUMBERS.items()}
_WRITERS = {kind: [(field.name, field.write) for field in fields.values()] for kind, fields in _FIELDS.items()}
