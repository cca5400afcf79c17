"""Lines of JSON, one per event, in one direction: what `manage.py listen` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from notifications.delivery.codes import Code
from notifications.delivery.protocols.base import AskedTopicsOnly
from notifications.delivery.session import Session
from notifications.delivery.subscription import Subscription
from notifications.events.event import EncodedEvent

_encode = msgspec.json.Encoder().encode

Ended = Callable[[str, Code], None]


class LinesState:
    """What the protocol remembers of one session: whom to tell when the server ends a subscription."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended: Ended | None = None


class LinesProtocol(AskedTopicsOnly):
    """Events as lines; nothing is received."""

    name = "lines"
    answers_pings = False

    def new_state(self) -> LinesState:
        return LinesState()

    def opened(self, session: Session) -> None:
        session.switchboard.identified(session)
        session.connected = True

    def received(self, session: Session, data: bytes | str) -> None:
        """Nothing is sent to a listener's session."""

    def encode_event(self, event: EncodedEvent) -> bytes:
        sender = event.sender
        line = {
            "id": event.id,
            "topic": event.topic,
            "type": event.type,
            "offset": event.offset,
            "epoch": event.epoch,
            "time": event.time,
            "key": event.key,
            "sender": None if sender is None else {"user": sender.user, "client": sender.client, "info": sender.info},
            "data": event.data,
        }
        return _encode(line) + b"\n"

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        return None

    def encode_ping(self) -> bytes | None:
        return None

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        state: LinesState = session.state
        if state.ended is not None:
            state.ended(subscription.topic.name, code)

    def closing(self, session: Session, code: Code) -> bytes | None:
        return None


LINES = LinesProtocol()
