"""What the server tells clients of the Centrifuge protocol without being asked."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.protocols import schema
from notifications.delivery.protocols.codecs import JSON, Codec
from notifications.delivery.protocols.schema import ClientInfo, Publication, Push, Reply, publication_of
from notifications.delivery.session import Session
from notifications.delivery.subscription import Recovery, Subscription
from notifications.events.event import EncodedEvent


class CentrifugePushes:
    """Events, joins, pings and what happens to a session, as the protocol's pushes."""

    takes_subscriptions = True

    def __init__(
        self, codec: Codec = JSON, *, name: str = "centrifuge", native_pings: bool = False, emulated: bool = False
    ) -> None:
        self.codec = codec
        self.name = name
        self.binary = codec.binary
        self.emulated = emulated
        self.answers_pings = not native_pings

    def _push(self, session: Session, push: Push) -> None:
        session.send(self.codec.encode(Reply(push=push)))

    def encode_event(self, event: EncodedEvent) -> bytes:
        return self.codec.encode_publication(event.topic, publication_of(event))

    def encode_delta(self, event: EncodedEvent, base: EncodedEvent | None) -> bytes:
        """The payload of an event for clients that have `base`, the event before it, or have nothing yet."""
        return self.codec.encode_publication(event.topic, self._delta(event, base))

    def _delta(self, event: EncodedEvent, base: EncodedEvent | None) -> Publication:
        data, delta = self.codec.delta(event.data, None if base is None else base.data)
        return publication_of(event, data=data, delta=delta)

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes:
        told = msgspec.convert(info, ClientInfo)
        push = (
            Push(channel=topic, join=schema.Join(told))
            if action == "join"
            else Push(channel=topic, leave=schema.Leave(told))
        )
        return self.codec.encode(Reply(push=push))

    def encode_ping(self) -> bytes | None:
        return self.codec.encode(Reply()) if self.answers_pings else None

    def subscribed(self, session: Session, recovery: Recovery, data: Any) -> None:
        position, kept = recovery.position, recovery.subscription.topic.retention.kept
        subscribe = schema.Subscribe(
            recoverable=kept,
            positioned=kept,
            epoch=position.epoch,
            offset=position.offset - len(recovery.events),
            data=UNSET if data is None else raw(data),
        )
        self._push(session, Push(channel=recovery.subscription.topic.name, subscribe=subscribe))
        for event in recovery.events:
            session.send_frame(session.encoding.frame(event))

    def messaged(self, session: Session, data: Any) -> None:
        self._push(session, Push(message=schema.Message(raw(data))))

    def prolonged(self, session: Session) -> None:
        self._push(session, Push(refresh=schema.Refresh(*time_left(session.identity.expires_at))))

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        if subscription.by_server and code is codes.UNSUBSCRIBED_INSUFFICIENT_STATE:
            # The SDK resubscribes only what it subscribed itself; a reconnect recovers the others.
            session.disconnect(codes.INSUFFICIENT_STATE)
            return
        unsubscribe = schema.Unsubscribe(code.code, code.reason)
        self._push(session, Push(channel=subscription.topic.name, unsubscribe=unsubscribe))

    def closing(self, session: Session, code: Code) -> bytes | None:
        if not self.emulated:
            return None  # a WebSocket's close frame carries the code
        return self.codec.encode(Reply(push=Push(disconnect=schema.Disconnect(code.code, code.reason))))


def time_left(expires_at: float | None) -> tuple[bool, int]:
    """Whether something expires, and in how many seconds."""
    return (False, 0) if expires_at is None else (True, max(1, round(expires_at - time.time())))


def raw(data: Any) -> Raw:
    return data if isinstance(data, Raw) else Raw(msgspec.json.encode(data))
