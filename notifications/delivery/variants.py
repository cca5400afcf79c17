"""Subscriptions that do not get every event as it is: those with a filter of tags, and those that get deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from notifications.delivery.frames import Encoding
from notifications.events.event import EncodedEvent

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.subscription import Subscription

#: Encodes an event as the difference to the one before it, or as a whole where that is None.
DeltaEncoder = Callable[[EncodedEvent, EncodedEvent | None], bytes]
Accepts = Callable[[EncodedEvent], bool]


class Variant:
    """How the events of one subscription differ from those of others.

    It has either a filter or deltas: who does not get an event cannot be told what differs from it.
    """

    __slots__ = ("_accepts", "delta", "kind", "whole")

    def __init__(
        self, *, accepts: Accepts | None = None, filter: bytes = b"", delta: DeltaEncoder | None = None
    ) -> None:
        self._accepts = accepts
        self.delta = delta
        #: What subscriptions that get the same have in common.
        self.kind = (filter, delta)
        #: Whether the next event has to be sent as a whole, because the one before it was not.
        self.whole = True

    def accepts(self, event: EncodedEvent) -> bool:
        """Whether the subscription gets the event at all."""
        return self._accepts is None or self._accepts(event)

    def frame(self, event: EncodedEvent, encoding: Encoding) -> bytes | None:
        """The event for this subscription alone, or None when it does not get it. Deltas begin anew after it."""
        if not self.accepts(event):
            return None
        return encoding.frame(event) if self.delta is None else encoding.framing(self.delta(event, None))


class VariantReceivers:
    """The live subscriptions of one topic that have a variant; those of one kind share their frames."""

    __slots__ = ("_previous", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: dict[Session, Subscription] = {}
        self._previous: EncodedEvent | None = None

    def send(self, events: Sequence[EncodedEvent], *, exclude: str | None = None) -> int:
        """Send events to those who get them, but for the client `exclude`; returns how many were sent."""
        made: dict[object, list[bytes]] = {}
        sent = 0
        for session, subscription in self.subscriptions.items():
            variant = subscription.variant
            assert variant is not None
            if session.id == exclude:
                variant.whole = True
                continue
            shared = (session.encoding, variant.kind, variant.whole)
            pieces = made.get(shared)
            if pieces is None:
                pieces = made[shared] = self._pieces(events, variant, session.encoding)
            variant.whole = False
            for piece in pieces:
                session.send_frame(piece)
            sent += len(pieces)
        self._previous = events[-1]
        return sent

    def _pieces(self, events: Sequence[EncodedEvent], variant: Variant, encoding: Encoding) -> list[bytes]:
        if variant.delta is None:
            return [encoding.frame(event) for event in events if variant.accepts(event)]
        base = None if variant.whole else self._previous
        pieces = []
        for event in events:
            pieces.append(encoding.framing(variant.delta(event, base)))
            base = event
        return pieces
