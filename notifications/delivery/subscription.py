"""A session's subscription to one topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from notifications.events.event import Cursor, EncodedEvent
from notifications.events.topics import ResolvedTopic

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session


class Subscription:
    """A session's subscription to a topic.

    Until it is released, events are held in `held`; events up to `floor` were sent another way.
    """

    __slots__ = ("by_server", "established", "floor", "held", "join_leave", "live", "outdated", "session", "topic")

    def __init__(self, session: Session, topic: ResolvedTopic, *, by_server: bool, join_leave: bool) -> None:
        self.session = session
        self.topic = topic
        self.by_server = by_server
        self.join_leave = join_leave
        self.live: LiveTopic | None = None
        self.held: list[EncodedEvent] | None = []
        self.floor = 0
        self.established = False
        # Whether the topic's log began anew while this was being made.
        self.outdated = False

    def release(self) -> None:
        """Send the events that were held while the subscription was being answered, and go live."""
        if self.live is not None:
            self.live.release(self)


class Recovery(NamedTuple):
    """The outcome of subscribing: where the subscription begins, and what was missed before.

    `recovered` is None when the client asked for no recovery.
    """

    subscription: Subscription
    position: Cursor
    events: list[EncodedEvent]
    recovered: bool | None
