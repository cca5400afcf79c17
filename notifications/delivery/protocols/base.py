"""The interface of a wire protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from notifications.delivery.codes import Code
from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.subscription import Recovery, Subscription


class WireProtocol(Protocol):
    """Turns what a client sends into calls on its session, and what happens into payloads for it.

    One object serves all sessions of the protocol; what it must remember of one is in `session.state`. All
    methods are called on the event loop and must not block it.
    """

    name: str
    #: Whether payloads are bytes and not texts.
    binary: bool
    #: Whether a client answers what `encode_ping()` made, and is disconnected when it does not.
    answers_pings: bool

    #: Whether clients can be told of topics that they did not ask for.
    takes_subscriptions: bool

    def new_state(self) -> Any:
        """What the protocol remembers of a new session."""
        ...

    def opened(self, session: Session) -> None:
        """The transport is open."""
        ...

    def received(self, session: Session, data: bytes | str) -> None:
        """One message of the client; raises Disconnect when the session must end because of it."""
        ...

    def encode_event(self, event: EncodedEvent) -> bytes:
        """The payload of an event, the same for all sessions of the protocol."""
        ...

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        """The payload that tells of a join or leave, or None where the protocol has none."""
        ...

    def encode_ping(self) -> bytes | None:
        """The payload of a ping, or None where the transport has its own."""
        ...

    def subscribed(self, session: Session, recovery: Recovery, data: Any) -> None:
        """The server subscribed the session, and has `data` for it."""
        ...

    def messaged(self, session: Session, data: Any) -> None:
        """The server has something for this client alone, that is no event."""
        ...

    def prolonged(self, session: Session) -> None:
        """The server changed when the session expires."""
        ...

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        """The server ended a subscription of the session."""
        ...

    def closing(self, session: Session, code: Code) -> bytes | None:
        """A last payload before the session is closed with a code, or None."""
        ...

    def closed(self, session: Session) -> None:
        """The session has ended."""
        ...


class AskedTopicsOnly:
    """What protocols have in common that know nothing but the topics their client asked for, and speak text."""

    binary = False
    takes_subscriptions = False

    def subscribed(self, session: Session, recovery: Recovery, data: Any) -> None:
        """Never happens."""

    def messaged(self, session: Session, data: Any) -> None:
        """There is no place for it."""

    def prolonged(self, session: Session) -> None:
        """The client has nothing to do about it."""

    def closed(self, session: Session) -> None:
        """There is nothing to give back."""
