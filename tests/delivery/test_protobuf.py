"""The binary form of the Centrifuge protocol, compared with what the package of its Python client makes of it.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from centrifuge.protocol import client_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct

from notifications.delivery.protocols import schema
from notifications.delivery.protocols.protobuf import (
    MAX_DEPTH,
    NUMBERS,
    decode_commands,
    decode_emulation,
    encode_reply,
    framed,
)
from notifications.delivery.protocols.schema import (
    ClientInfo,
    Command,
    ConnectRequest,
    EmulationRequest,
    FilterNode,
    HistoryRequest,
    Publication,
    PublishResult,
    Push,
    Reply,
    StreamPosition,
    SubscribeRequest,
    UnsubscribeRequest,
)

EXAMPLES = int(os.environ.get("HUB_FUZZ_EXAMPLES", "0"))

compared = settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    max_examples=EXAMPLES or 40,
    suppress_health_check=[HealthCheck.too_slow],
)
fuzzed = settings(compared, max_examples=EXAMPLES or 300)

#: What the public schema does not have.
UNNUMBERED = {"Publication": {"epoch"}, "SubscribeRequest": {"type"}}

STRUCTS = [kind for kind in vars(schema).values() if isinstance(kind, type) and kind.__module__ == schema.__name__]

# Structs and messages of the public schema


def descriptor_of(kind: type[Struct]) -> Descriptor:
    return client_pb2.DESCRIPTOR.message_types_by_name[kind.__name__.replace("Rpc", "RPC")]


def struct_in(hint: Any) -> type[Struct] | None:
    """The struct that a field of this type holds, lists or maps to."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint
    return next((found for kind in get_args(hint) if (found := struct_in(kind))), None)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def message_of(struct: Struct) -> Message:
    """The struct as a message of the public schema, set value by value."""
    message = getattr(client_pb2, descriptor_of(type(struct)).name)()
    for field in message.DESCRIPTOR.fields:
        value, held = getattr(struct, field.name, None), getattr(message, field.name)
        if value is None or value is UNSET:
            continue
        if field.type == FieldDescriptor.TYPE_BYTES:
            setattr(message, field.name, bytes(value) if isinstance(value, Raw) else msgspec.json.encode(value))
        elif is_map(field):
            for key, item in value.items():
                if isinstance(item, Struct):
                    held[key].CopyFrom(message_of(item))
                else:
                    held[key] = item
        elif isinstance(value, list):
            held.extend([message_of(item) if isinstance(item, Struct) else item for item in value])
        elif isinstance(value, Struct):
            held.CopyFrom(message_of(value))
            held.SetInParent()  # also when it is empty
        else:
            setattr(message, field.name, value)
    return message


def serialized(*commands: Message) -> bytes:
    return b"".join(framed(command.SerializeToString()) for command in commands)


# What hypothesis makes of them

json = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
raw = json.map(msgspec.json.encode).map(Raw)

NUMBER_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**63 - 1),
}


def values(field: FieldDescriptor, hint: Any) -> st.SearchStrategy[Any]:
    if hint is Any:
        return st.none() | json
    if field.type == FieldDescriptor.TYPE_BYTES:
        return raw if hint is Raw else raw | st.just(UNSET)
    if field.type in NUMBER_RANGES:
        return st.integers(*NUMBER_RANGES[field.type]) | st.just(0)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    kind = struct_in(hint)
    item = structs(kind) if kind is not None else st.text(max_size=20) | st.just("ü" * 100)
    if is_map(field):
        filled = st.dictionaries(st.text(max_size=5), item, min_size=1, max_size=3)
        return filled | st.just(None if NoneType in get_args(hint) else {})
    if get_origin(hint) is list:
        return st.lists(item, max_size=3)
    return item if kind is None else st.none() | item


def structs(kind: type[Struct]) -> st.SearchStrategy[Any]:
    """Structs of this type with any values in the fields that the public schema has."""
    hints = get_type_hints(kind)
    fields = {
        field.name: values(field, hints[field.name])
        for field in descriptor_of(kind).fields
        if field.name in hints and struct_in(hints[field.name]) is not kind
    }
    built = st.builds(kind, **fields)
    if kind is FilterNode:
        return st.recursive(built, lambda nodes: st.builds(kind, **fields, nodes=st.lists(nodes, max_size=2)))
    return built


def with_one_of(kind: type[Struct], name: str, **others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Structs of this type in which, of its messages, only the field of this name is set."""
    held = struct_in(get_type_hints(kind)[name])
    assert held is not None
    return st.builds(kind, **others, **{name: structs(held)})


def messages_in(kind: type[Struct]) -> list[str]:
    return [name for name, hint in get_type_hints(kind).items() if struct_in(hint)]


ids = st.integers(0, 2**32 - 1)
commands = st.sampled_from(schema.METHODS).flatmap(lambda name: with_one_of(Command, name, id=ids))
frames = st.lists(commands, min_size=1, max_size=3)


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_the_numbers_are_those_of_the_public_schema(kind: type[Struct]) -> None:
    names = set(kind.__struct_fields__) - UNNUMBERED.get(kind.__name__, set())

    published = {field.name: field.number for field in descriptor_of(kind).fields if field.name in names}

    assert NUMBERS[kind] == published
    assert set(published) == names


@pytest.mark.parametrize("name", [name for name in messages_in(Reply) if name != "push"])
@compared
@given(data=st.data())
def test_a_reply_is_what_the_clients_read(name: str, data: st.DataObject) -> None:
    reply = data.draw(with_one_of(Reply, name, id=ids))

    encoded = encode_reply(reply)

    assert client_pb2.Reply.FromString(encoded) == message_of(reply)
    assert len(encoded) == message_of(reply).ByteSize()


@pytest.mark.parametrize("name", messages_in(Push))
@compared
@given(data=st.data())
def test_a_push_is_what_the_clients_read(name: str, data: st.DataObject) -> None:
    reply = Reply(push=data.draw(with_one_of(Push, name, channel=st.text(max_size=20))))

    encoded = encode_reply(reply)

    assert client_pb2.Reply.FromString(encoded) == message_of(reply)
    assert len(encoded) == message_of(reply).ByteSize()


def test_a_publication_byte_by_byte() -> None:
    info = ClientInfo("42", "c", {})
    publication = Publication(Raw(b"[1]"), 300, info, {"type": "a", "": ""}, delta=True, epoch="left out")

    encoded = encode_reply(Reply(push=Push("t", publication)))

    assert encoded == (
        b"\x22\x2d\x12\x01t"
        b"\x22\x28\x22\x03[1]"
        b"\x2a\x0b\x0a\x0242\x12\x01c\x1a\x02{}"
        b"\x30\xac\x02"
        b"\x3a\x09\x0a\x04type\x12\x01a"
        b"\x3a\x04\x0a\x00\x12\x00"
        b"\x40\x01"
    )


def test_a_ping_is_empty() -> None:
    assert encode_reply(Reply()) == b""
    assert framed(b"") == b"\x00"


def test_the_length_of_a_long_message_has_several_bytes() -> None:
    assert framed(b"x" * 127) == b"\x7f" + b"x" * 127
    assert framed(b"x" * 128) == b"\x80\x01" + b"x" * 128
    assert framed(b"x" * 70_000) == b"\xf0\xa2\x04" + b"x" * 70_000


def test_a_result_without_anything_is_still_an_answer() -> None:
    answer = client_pb2.Reply.FromString(encode_reply(Reply(7, publish=PublishResult())))

    assert answer.id == 7
    assert answer.HasField("publish")


@pytest.mark.parametrize("name", schema.METHODS)
@compared
@given(data=st.data())
def test_a_command_is_what_a_client_wrote(name: str, data: st.DataObject) -> None:
    command = data.draw(with_one_of(Command, name, id=ids))

    decoded = decode_commands(serialized(message_of(command)))

    assert decoded == [command]


@compared
@given(frames)
def test_a_frame_holds_several_commands(written: list[Command]) -> None:
    assert decode_commands(serialized(*map(message_of, written))) == written


def test_commands_of_a_client() -> None:
    connect = client_pb2.Command(id=1)
    connect.connect.token = "t"
    connect.connect.headers["x"] = "ü"
    connect.connect.subs["news:1"].recover = True
    connect.connect.subs["news:1"].offset = 2**63 - 1
    subscribe = client_pb2.Command(id=2**32 - 1)
    subscribe.subscribe.channel = "news:2"
    subscribe.subscribe.data = b"not JSON"
    subscribe.subscribe.tf.op = "and"
    subscribe.subscribe.tf.nodes.add(key="k", cmp="in", vals=["a", "", "b"])
    history = client_pb2.Command(id=3)
    history.history.limit = -1
    history.history.since.epoch = "e"

    decoded = decode_commands(serialized(connect, subscribe, history, client_pb2.Command()))

    recovering = SubscribeRequest(recover=True, offset=2**63 - 1)
    node = FilterNode(key="k", cmp="in", vals=["a", "", "b"])
    assert decoded == [
        Command(1, connect=ConnectRequest("t", subs={"news:1": recovering}, headers={"x": "ü"})),
        Command(
            2**32 - 1,
            subscribe=SubscribeRequest("news:2", data=Raw(b"not JSON"), tf=FilterNode("and", nodes=[node])),
        ),
        Command(3, history=HistoryRequest(limit=-1, since=StreamPosition(epoch="e"))),
        Command(),
    ]


def test_an_entry_may_lack_its_key_and_its_value() -> None:
    headers = b"".join(b"\x32" + framed(entry) for entry in (b"", b"\x0a\x01x", b"\x12\x01y"))
    subs = b"\x1a\x03\x0a\x01t"

    decoded = decode_commands(framed(b"\x22" + framed(headers + subs)))

    expected = ConnectRequest(headers={"": "y", "x": ""}, subs={"t": SubscribeRequest()})
    assert decoded == [Command(connect=expected)]


def test_the_last_of_repeated_fields_counts() -> None:
    ids, request = b"\x08\x01\x08\x02", b"\x0a\x01a\x0a\x01b"

    decoded = decode_commands(framed(ids + b"\x32" + framed(request)))

    assert decoded == [Command(2, unsubscribe=UnsubscribeRequest("b"))]


def test_unknown_fields_are_skipped() -> None:
    number, eight, text, four = b"\xa0\x01\x80\x01", b"\xa1\x0112345678", b"\xa2\x01\x03abc", b"\xa5\x011234"
    unknown = number + eight + text + four

    decoded = decode_commands(framed(unknown + b"\x32" + framed(unknown + b"\x0a\x01a" + unknown) + b"\x08\x01"))

    assert decoded == [Command(1, unsubscribe=UnsubscribeRequest("a"))]


def test_an_emulation_request_holds_a_frame() -> None:
    frame = serialized(client_pb2.Command(id=1))
    request = client_pb2.EmulationRequest(node="n", session="s", data=frame)

    assert decode_emulation(request.SerializeToString()) == EmulationRequest("n", "s", frame)


def nested(levels: int) -> bytes:
    node = b""
    for _ in range(levels - 1):
        node = b"\x32" + framed(node)
    return framed(b"\x2a" + framed(b"\x6a" + framed(node)))


def test_a_filter_may_be_nested_as_deep_as_messages_may_be() -> None:
    [command] = decode_commands(nested(MAX_DEPTH - 2))

    assert command.subscribe is not None
    node, levels = command.subscribe.tf, 0
    while node is not None:
        node, levels = node.nodes[0] if node.nodes else None, levels + 1
    assert levels == MAX_DEPTH - 2


MALFORMED = {
    "no message": (b"", "A frame holds at least one message."),
    "an unfinished length": (b"\x80", "A message ends within a number."),
    "a length of eleven bytes": (b"\x80" * 10 + b"\x00", "A number has more than 64 bits."),
    "a number of 65 bits": (framed(b"\x08" + b"\xff" * 9 + b"\x02"), "A number has more than 64 bits."),
    "a length beyond the end": (b"\x05\x08\x01", "A message ends 3 bytes too early."),
    "a huge length": (b"\xff" * 9 + b"\x01\x08\x01", f"A message ends {2**64 - 3} bytes too early."),
    "a second message without its end": (b"\x02\x08\x01\x02\x08", "A message ends 1 bytes too early."),
    "a field beyond its message": (framed(b"\x3a\x03\x0a\x05a\x08\x01"), "A message ends 4 bytes too early."),
    "a number beyond its message": (framed(b"\x08\x80") + b"\x01", "A message ends within a number."),
    "a tag without a value": (framed(b"\x08"), "A message ends within a number."),
    "seven of eight bytes": (framed(b"\xa1\x011234567"), "A message ends 1 bytes too early."),
    "three of four bytes": (framed(b"\xa5\x01123"), "A message ends 1 bytes too early."),
    "the field 0": (framed(b"\x00\x01"), "No field can have the number 0."),
    "a field above the last one": (
        framed(b"\x80\x80\x80\x80\x10\x01"),
        "No field can have the number 536870912.",
    ),
    "bytes for a number": (framed(b"\x0a\x00"), "id has the wire type 2 instead of 0."),
    "four bytes for a number": (framed(b"\x0d1234"), "id has the wire type 5 instead of 0."),
    "a number for a message": (framed(b"\x20\x01"), "connect has the wire type 0 instead of 2."),
    "a number for text": (framed(b"\x3a\x02\x08\x01"), "channel has the wire type 0 instead of 2."),
    "a group": (framed(b"\xa3\x01\xa4\x01"), "Field 20 has the wire type 3."),
    "the end of a group": (framed(b"\x0c"), "Field 1 has the wire type 4."),
    "wire type 7": (framed(b"\x0f\x00"), "Field 1 has the wire type 7."),
    "an id of 33 bits": (framed(b"\x08\x80\x80\x80\x80\x10"), "4294967296 is not between 0 and 4294967295."),
    "a negative id": (framed(b"\x08" + b"\xff" * 9 + b"\x01"), "-1 is not between 0 and 4294967295."),
    "a negative offset": (
        framed(b"\x2a\x0b\x38" + b"\xff" * 9 + b"\x01"),
        "-1 is not between 0 and 9223372036854775807.",
    ),
    "text in Latin-1": (framed(b"\x3a\x03\x0a\x01\xfc"), "Text is not UTF-8."),
    "a surrogate": (framed(b"\x3a\x05\x0a\x03\xed\xa0\x80"), "Text is not UTF-8."),
    "a key in Latin-1": (framed(b"\x22\x05\x32\x03\x0a\x01\xfc"), "Text is not UTF-8."),
    "a filter nested too deep": (nested(MAX_DEPTH - 1), "Messages are nested deeper than 32."),
    "a filter nested much too deep": (nested(10_000), "Messages are nested deeper than 32."),
}


@pytest.mark.parametrize(("data", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_valid_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        decode_commands(data)


@pytest.mark.parametrize("data", [b"\x0a", b"\x18\x01", b"\x0a\x01\xff", b"\x1a\x05abcd"])
def test_an_emulation_request_that_is_not_valid_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        decode_emulation(data)


@fuzzed
@given(st.binary(max_size=200))
def test_any_bytes_are_commands_or_refused(data: bytes) -> None:
    for decode in (decode_commands, decode_emulation):
        with suppress(ValueError):
            decode(data)
    with suppress(ValueError):
        decode_commands(framed(data))


changes = st.lists(
    st.tuples(st.integers(min_value=0), st.binary(max_size=2), st.integers(0, 2)), min_size=1, max_size=4
)


@fuzzed
@given(frames, changes)
def test_a_damaged_frame_is_commands_or_refused(written: list[Command], damage: list[tuple[int, bytes, int]]) -> None:
    data = serialized(*map(message_of, written))
    for position, inserted, removed in damage:
        at = position % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]

    with suppress(ValueError):
        assert all(type(command) is Command for command in decode_commands(data))
