"""CloudEvents 1.0 in structured JSON mode, as requests to publish."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from notifications.delivery import codes
from notifications.delivery.codes import CommandError

CONTENT_TYPE = "application/cloudevents+json"

_Text = Annotated[str, Meta(min_length=1)]


class CloudEvent(Struct, frozen=True):
    """The attributes that the hub uses; others are ignored. `topic` is an extension that goes before `subject`."""

    specversion: Literal["1.0"]
    id: _Text
    source: _Text
    type: _Text
    subject: str = ""
    topic: str = ""
    partitionkey: str | None = None
    data: Any = None
    data_base64: str | None = None


def publish_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the method `publish` that a CloudEvent stands for.

    Raises CommandError 107 when it is none, or has no topic, or its data is not JSON.
    """
    try:
        event = msgspec.convert(body, CloudEvent)
    except msgspec.ValidationError as error:
        raise CommandError(codes.BAD_REQUEST, f"not a CloudEvent: {error}") from error
    if event.data_base64 is not None:
        raise CommandError(codes.BAD_REQUEST, "data_base64 is binary, and an event's data is JSON: use data")
    name = event.topic or event.subject
    if not name:
        raise CommandError(codes.BAD_REQUEST, "the CloudEvent names no topic: set subject, or the extension topic")
    return {
        "channel": name,
        "data": event.data,
        "type": event.type,
        "key": event.partitionkey,
        # An id is unique within its source only.
        "idempotency_key": hashlib.sha256(f"{event.source}\0{event.id}".encode()).hexdigest(),
    }
