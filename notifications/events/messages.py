"""What travels through the channel layer between processes.

Every message carries the version of its format, so that processes of two releases can run side by side during
a deploy: a process ignores a version that it does not know, and finds what it missed in the log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from notifications.events.event import EncodedEvent, decode

FORMAT = 1
EVENT = "hub.event"
PRESENCE = "hub.presence"
CONTROL = "hub.control"

CONTROL_GROUP = "hub-control"

# Group names allow fewer characters than topics, and under a hundred of them.
_DIRECT = re.compile(r"[A-Za-z0-9_-]{1,40}:[A-Za-z0-9_-]{1,50}")


def group_of(topic: str) -> str:
    """The channel-layer group of a topic: readable where the name allows it, hashed otherwise."""
    if _DIRECT.fullmatch(topic):
        return "hub." + topic.replace(":", ".")
    return "hub-" + hashlib.blake2b(topic.encode(), digest_size=20).hexdigest()


def event_message(event: EncodedEvent, encoded: str, exclude: str | None) -> dict[str, Any]:
    """The message that says: this event is now at its offset. `encoded` is what `encode(event)` returned."""
    message: dict[str, Any] = {
        "type": EVENT,
        "v": FORMAT,
        "topic": event.topic,
        "offset": event.offset or 0,
        "epoch": event.epoch,
        "event": encoded,
    }
    if exclude:
        message["exclude"] = exclude
    return message


def event_message_beginning(topic: str, exclude: str | None = None) -> bytes:
    """An event message packed by MessagePack up to its offset, epoch and event, in whatever order these follow."""
    constant: dict[str, Any] = {"type": EVENT, "v": FORMAT, "topic": topic}
    if exclude:
        constant["exclude"] = exclude
    packed = msgspec.msgpack.encode(constant)
    return bytes([packed[0] + 3]) + packed[1:]  # a map of up to 15 entries begins with 0x80 and their number


def event_of(message: dict[str, Any]) -> EncodedEvent:
    """The event that an event message carries."""
    return decode(message["event"], offset=message["offset"], epoch=message["epoch"])


class PresenceChange(NamedTuple):
    """A client joined or left (`action`: "join" or "leave") a topic; `info` is what others may know of it."""

    action: str
    client: str
    info: dict[str, Any]


def presence_message(topic: str, changes: Sequence[PresenceChange]) -> dict[str, Any]:
    """The message that says who joined and left a topic, in this order; at least one.

    The first stands where a release that knows of no others finds it.
    """
    first, *others = changes
    message = {"type": PRESENCE, "v": FORMAT, "topic": topic, **first._asdict()}
    if others:
        message["others"] = [list(change) for change in others]
    return message


def presence_changes(message: dict[str, Any]) -> list[PresenceChange]:
    """Who joined and left, as a presence message says."""
    first = PresenceChange(message["action"], message["client"], message["info"])
    return [first, *(PresenceChange(*change) for change in message.get("others", ()))]


def control_message(operation: str, **arguments: Any) -> dict[str, Any]:
    """A message for the server processes themselves, see `notifications.delivery.control`."""
    return {"type": CONTROL, "v": FORMAT, "operation": operation, **arguments}
