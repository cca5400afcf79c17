"""What a subscriber missed, from a read of its topic's log that all share who come back at once."""

from __future__ import annotations

from notifications.delivery.live_topic import LiveTopic
from notifications.delivery.shared_reads import MissedEvents
from notifications.delivery.subscription import Recovery, Subscription
from notifications.events import conf
from notifications.events.event import Cursor


async def recover(subscription: Subscription, since: Cursor | None) -> Recovery:
    """The events after `since`, for a subscription that is attached to its topic and held.

    Raises LogUnavailable when the log cannot be reached.
    """
    topic, live = subscription.topic, subscription.live
    if live is None or live.position is None or since is None or not topic.retention.kept:
        position = live.position if live is not None else None
        return Recovery(subscription, position or Cursor(), MissedEvents(), None)
    while True:
        subscription.outdated = False
        if topic.declaration.recovery == "cache":
            recovery = await _newest(subscription, live, live.position, since)
        else:
            recovery = await _missed(subscription, live, live.position, since)
        if not subscription.outdated:
            return recovery
        if subscription.held is not None:
            subscription.held.clear()  # of the run that has ended


async def _missed(subscription: Subscription, live: LiveTopic, position: Cursor, since: Cursor) -> Recovery:
    # Whose cursor is of another run is told so, when the log says as well that this topic is not.
    offset = position.offset
    if since.epoch in ("", position.epoch):
        # The log need not be asked where nothing was missed, or too much: a storm of reconnects reads little.
        missed = position.offset - since.offset
        if missed == 0 or missed > conf.get("HUB_MAX_HISTORY"):
            return Recovery(subscription, position, MissedEvents(), missed == 0)
        offset = since.offset
    page = await live.recent.after(offset)
    events = page.after(since)
    return Recovery(subscription, page.position, MissedEvents() if events is None else events, events is not None)


async def _newest(subscription: Subscription, live: LiveTopic, position: Cursor, since: Cursor) -> Recovery:
    """The newest event alone, unless the subscriber has it: all that a topic needs whose events replace each other."""
    page = await live.recent.after(max(0, position.offset - 1))
    events = page.newest()
    if events is None:
        return Recovery(subscription, page.position, MissedEvents(), False)
    return Recovery(subscription, page.position, MissedEvents() if since == page.position else events, True)
