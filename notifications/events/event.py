"""The event: one immutable fact, and its encoding between processes."""

from __future__ import annotations

import os
import random
import time as clock
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from django.utils.functional import Promise

from notifications.events import conf
from notifications.events.exceptions import EventTooLarge, InvalidEvent

DEFAULT_TYPE = "message"
MAX_TYPE_LENGTH = 120
MAX_TAGS = 32
MAX_TAG_KEY_LENGTH = 64
MAX_TAG_LENGTH = 255
#: Tags that the wire protocols write themselves.
RESERVED_TAGS = frozenset({"type", "id"})


class Cursor(msgspec.Struct, frozen=True):
    """A position in a topic: `offset` events of the unbroken run named `epoch` have been seen."""

    offset: int = 0
    epoch: str = ""


class Sender(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who published: the user's id, the client (one connection), and what others may know of the user."""

    user: str = ""
    client: str = ""
    info: Any = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True, eq=False, kw_only=True):
    """One immutable fact on a topic.

    `offset` is None until the log has given one (see `publish()`), and 0 on a topic that keeps nothing.
    `tags` are what subscribers can filter by without a look into the data.
    Two events are equal when they say the same: topic, type, data and key. What the hub assigns (id, time,
    offset, epoch), the tags and who sent it are left out, so that a test can compare with an event it wrote itself.
    """

    topic: str
    type: str
    data: Any = None
    id: str = ""
    time: datetime | None = None
    key: str | None = None
    sender: Sender | None = None
    tags: dict[str, str] | None = None
    offset: int | None = None
    epoch: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return (self.topic, self.type, self.data, self.key) == (
            other.topic,
            other.type,
            other.data,
            other.key,
        )

    __hash__ = None  # type: ignore[assignment]  # data is any JSON, so events cannot be hashed

    @property
    def cursor(self) -> Cursor:
        """The position right after this event."""
        return Cursor(self.offset or 0, self.epoch)


class EncodedEvent(Event, frozen=True, omit_defaults=True, eq=False, kw_only=True):
    """An event whose `data` is still JSON text: what logs return, so that delivery decodes nothing."""

    data: msgspec.Raw = msgspec.Raw(b"null")

    def decoded(self) -> Event:
        """The same event with `data` as Python objects."""
        return Event(
            topic=self.topic,
            type=self.type,
            data=_decode_json(self.data),
            id=self.id,
            time=self.time,
            key=self.key,
            sender=self.sender,
            tags=self.tags,
            offset=self.offset,
            epoch=self.epoch,
        )


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Promise):  # Django's lazy translations
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook)
_decoder = msgspec.json.Decoder(EncodedEvent)
_decode_json = msgspec.json.Decoder().decode


def encode_json(value: Any) -> bytes:
    """`value` as JSON text, as the data of events is written. Raises TypeError or ValueError when it is not JSON."""
    return _encoder.encode(value)


# Ids have to be unlike each other, and are no secrets: asking the system for randomness would be a call to it each
# time. A generator of our own, because a site may seed Python's; and a fork must not go on with its parent's.
_random = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_random.seed)


def new_id(milliseconds: int) -> str:
    """A UUIDv7 (RFC 9562 §5.7) for the time `milliseconds` after 1970."""
    value = milliseconds << 80 | 0x7 << 76 | _random.getrandbits(76)
    digits = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def encode_data(data: Any) -> msgspec.Raw:
    """`data` as JSON text. What is JSON text already, a `msgspec.Raw`, is checked.

    Raises InvalidEvent when it is not JSON, and EventTooLarge beyond `HUB_MAX_DATA_BYTES`.
    """
    try:
        if type(data) is msgspec.Raw:
            # Encoded anew, although it might pass as it is: msgspec lets invalid UTF-8 and numbers beyond all bounds
            # into a Raw, and line breaks between tokens would end a line of the protocols that are made of lines.
            data = _decode_json(data)
        encoded = _encoder.encode(data)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidEvent(f"data must be JSON: {error}") from error
    limit = conf.get("HUB_MAX_DATA_BYTES")
    if len(encoded) > limit:
        raise EventTooLarge(f"data is {len(encoded)} bytes of JSON; HUB_MAX_DATA_BYTES allows {limit}")
    return msgspec.Raw(encoded)


def new_event(
    *,
    topic: str,
    type: str,
    data: Any,
    key: str | None = None,
    sender: Sender | None = None,
    tags: Mapping[str, str] | None = None,
) -> EncodedEvent:
    """A new event with its id and time, its data encoded.

    Raises InvalidEvent for a type that is empty, too long or not printable, for data that is not JSON, and for tags
    that are not text, too many, too long or reserved.
    """
    if not isinstance(type, str) or not type or len(type) > MAX_TYPE_LENGTH or not type.isprintable():
        raise InvalidEvent(f"an event's type is 1 to {MAX_TYPE_LENGTH} printable characters, not {type!r}")
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 255):
        raise InvalidEvent("an event's key is text of 1 to 255 characters")
    if tags is not None:
        tags = _checked_tags(tags)
    milliseconds = clock.time_ns() // 1_000_000
    return EncodedEvent(
        topic=topic,
        type=type,
        data=encode_data(data),
        id=new_id(milliseconds),
        time=datetime.fromtimestamp(milliseconds / 1000, UTC),
        key=key,
        sender=sender,
        tags=tags,
    )


def _checked_tags(tags: Any) -> dict[str, str] | None:
    """Tags as an event carries them: None when there are none. Raises InvalidEvent."""
    if not isinstance(tags, Mapping):
        raise InvalidEvent(f"an event's tags are an object of texts, not {tags!r}")
    if len(tags) > MAX_TAGS:
        raise InvalidEvent(f"an event has at most {MAX_TAGS} tags, not {len(tags)}")
    for key, value in tags.items():
        if not isinstance(key, str) or not 0 < len(key) <= MAX_TAG_KEY_LENGTH or not key.isprintable():
            raise InvalidEvent(f"the name of a tag is 1 to {MAX_TAG_KEY_LENGTH} printable characters, not {key!r}")
        if key in RESERVED_TAGS:
            raise InvalidEvent(f"the tag {key!r} is the hub's own: subscribers find the event's {key} in it")
        if not isinstance(value, str) or len(value) > MAX_TAG_LENGTH:
            raise InvalidEvent(f"the tag {key!r} must be text of at most {MAX_TAG_LENGTH} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(f"the tag {key!r} is no text: {error}") from error
    return dict(tags) or None


def encode(event: Event) -> str:
    """The event as the JSON text that logs keep and layer messages carry."""
    return encode_bytes(event).decode()


def encode_bytes(event: Event) -> bytes:
    """What `encode()` returns, in UTF-8."""
    return _encoder.encode(event)


def decode(text: str | bytes, *, offset: int, epoch: str) -> EncodedEvent:
    """The event that `encode()` wrote, at the position that the log gave it."""
    event = _decoder.decode(text)
    return at_position(event, offset=offset, epoch=epoch)


def at_position(event: EncodedEvent, *, offset: int, epoch: str) -> EncodedEvent:
    """The same event at a position of its topic."""
    return msgspec.structs.replace(event, offset=offset, epoch=epoch)


def plain(value: Any) -> Any:
    """`value` as the JSON types it becomes on the way: a Decimal as text, a date as ISO 8601."""
    if isinstance(value, Decimal):
        return str(value)
    return _decode_json(_encoder.encode(value))
