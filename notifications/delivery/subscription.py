"""A session's subscription to one topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from notifications.delivery.variants import Variant
from notifications.events.event import Cursor, EncodedEvent
from notifications.events.topics import ResolvedTopic

if TYPE_CHECKING:
    from notifications.delivery.identity import SubscriptionGrant
    from notifications.delivery.live_topic import LiveTopic
    from notifications.delivery.session import Session
    from notifications.delivery.shared_reads import MissedEvents


class Subscription:
    """A session's subscription to a topic.

    Until it is released, events are held in `held`; events up to `floor` were sent another way. `grant` is what a
    token or the server gave: it stands in the place of the declaration's permission.
    """

    __slots__ = (
        "by_server",
        "established",
        "floor",
        "grant",
        "held",
        "join_leave",
        "joined",
        "live",
        "outdated",
        "session",
        "topic",
        "variant",
    )

    def __init__(
        self,
        session: Session,
        topic: ResolvedTopic,
        *,
        by_server: bool,
        grant: SubscriptionGrant | None = None,
        variant: Variant | None = None,
    ) -> None:
        self.session = session
        self.topic = topic
        self.by_server = by_server
        # Whether this subscriber is told who joins and leaves.
        self.join_leave = False
        self.grant = grant
        self.variant = variant
        self.live: LiveTopic | None = None
        self.held: list[EncodedEvent] | None = []
        self.floor = 0
        #: Whether the subscriber is listed among the topic's.
        self.joined = False
        self.established = False
        # Whether the topic's log began anew while this was being made.
        self.outdated = False

    def follows(self, option: str, *, declared: bool) -> bool:
        """Whether an option of the topic holds for this subscription: as declared, unless its grant says otherwise."""
        return declared if self.grant is None else self.grant.overrides.get(option, declared)

    @property
    def present(self) -> bool:
        """Whether the subscriber is listed among the topic's."""
        return self.follows("presence", declared=self.topic.declaration.presence)

    @property
    def announced(self) -> bool:
        """Whether the others are told that the subscriber joins and leaves."""
        return self.present and self.follows("join_leave", declared=self.topic.declaration.join_leave)

    @property
    def client_info(self) -> dict[str, Any]:
        """The subscriber as other clients see it in presence, joins and leaves."""
        info = self.session.client_info
        if self.grant is not None and self.grant.info is not None:
            info["chan_info"] = self.grant.info
        return info

    def send(self, event: EncodedEvent) -> None:
        """Send an event to this subscriber alone, unless it was sent another way."""
        if event.offset and event.offset <= self.floor:
            return
        encoding = self.session.encoding
        frame = encoding.frame(event) if self.variant is None else self.variant.frame(event, encoding)
        if frame is not None:
            self.session.send_frame(frame)

    def release(self) -> None:
        """Send the events that were held while the subscription was being answered, and go live."""
        if self.live is not None:
            self.live.release(self)
            if self.present:
                # Not before: the subscriber is told of its own join as well, after the answer.
                self.joined = True
                self.session.switchboard.presence.join(self)


class Recovery(NamedTuple):
    """The outcome of subscribing: where the subscription begins, and what was missed before.

    `recovered` is None when the client asked for no recovery.
    """

    subscription: Subscription
    position: Cursor
    events: MissedEvents
    recovered: bool | None
