"""The subscribers of a topic that get its events as they are, in the order in which they are written to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from notifications.delivery.frames import Encoding
    from notifications.delivery.session import Session, Stream
    from notifications.delivery.subscription import Subscription

# A thousand writes take about 4 ms; between the parts of an audience the loop reads, and answers handshakes.
PART_SESSIONS = 1_000
# Of fewer, what is written to is found as fast as it is remembered, and most topics have one subscriber.
REMEMBERED_FROM = 32


class Part(NamedTuple):
    """Sessions whose frames are the same, at most `PART_SESSIONS`.

    `streams` are theirs, in the same order, while all of them can be written to without asking; otherwise it is None.
    """

    encoding: Encoding
    sessions: list[Session]
    streams: list[Stream] | None

    def owner(self, stream: Stream) -> Session:
        """Whose stream it is."""
        assert self.streams is not None
        return self.sessions[self.streams.index(stream)]


class Audience:
    """The subscribers of one topic that get its events as they are.

    What a broadcast costs beside the kernel's part is memory that has to be fetched, a session after the other. So
    where to write is remembered from one event to the next, until somebody comes, goes, or falls behind: a list of
    streams, for which no session is looked at.
    """

    __slots__ = ("_parts", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: dict[Session, Subscription] = {}
        self._parts: Sequence[Part] | None = None

    def __len__(self) -> int:
        return len(self.subscriptions)

    def __contains__(self, session: object) -> bool:
        return session in self.subscriptions

    def __iter__(self) -> Iterator[Session]:
        return iter(self.subscriptions)

    def add(self, subscription: Subscription) -> None:
        """Let a subscription take part."""
        self.subscriptions[subscription.session] = subscription
        self._parts = None

    def remove(self, session: Session) -> Subscription | None:
        """Take a session out; returns its subscription, or None when it took no part."""
        subscription = self.subscriptions.pop(session, None)
        if subscription is not None:
            self._parts = None
        return subscription

    def changed(self) -> None:
        """One of the sessions has another stream, or none any more."""
        self._parts = None

    def parts(self) -> Sequence[Part]:
        """All sessions, parted; the parts stay as they are when somebody comes or goes."""
        parts = self._parts
        if parts is None:
            parts = list(self._parted())
            if len(self.subscriptions) >= REMEMBERED_FROM:
                self._parts = parts
        return parts

    def _parted(self) -> Iterator[Part]:
        alike: defaultdict[tuple[Encoding, bool], list[Session]] = defaultdict(list)
        for session in self.subscriptions:
            alike[session.encoding, session.stream is not None].append(session)
        for (encoding, streaming), sessions in alike.items():
            for start in range(0, len(sessions), PART_SESSIONS):
                some = sessions[start : start + PART_SESSIONS]
                streams = [session.stream for session in some if session.stream is not None] if streaming else None
                yield Part(encoding, some, streams)
