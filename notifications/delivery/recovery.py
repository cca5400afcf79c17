"""What a subscriber missed, read from its topic's log."""

from __future__ import annotations

from notifications.delivery.subscription import Recovery, Subscription
from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.logs import log_for
from notifications.events.topics import ResolvedTopic


async def recover(subscription: Subscription, since: Cursor | None) -> Recovery:
    """The events after `since`, for a subscription that is attached to its topic and held.

    Raises LogUnavailable when the log cannot be reached.
    """
    topic, live = subscription.topic, subscription.live
    while True:
        subscription.outdated = False
        if since is None or not topic.retention.kept:
            position = live.position if live is not None else None
            return Recovery(subscription, position or Cursor(), [], None)
        if topic.declaration.recovery == "cache":
            recovery = await _newest(subscription, topic, since)
        else:
            recovery = await _missed(subscription, topic, since)
        if not subscription.outdated:
            return recovery
        if subscription.held is not None:
            subscription.held.clear()  # of the run that has ended


async def _missed(subscription: Subscription, topic: ResolvedTopic, since: Cursor) -> Recovery:
    live = subscription.live
    limit = conf.get("HUB_MAX_HISTORY")
    if live is not None and live.position is not None and since.epoch in ("", live.position.epoch):
        # The log need not be asked where nothing was missed, or too much: a storm of reconnects reads little.
        missed = live.position.offset - since.offset
        if missed == 0 or missed > limit:
            return Recovery(subscription, live.position, [], missed == 0)
    page = await log_for(topic.retention).aread(topic, since=since, limit=limit)
    recovered = page.continues(since)
    return Recovery(subscription, page.position, page.events if recovered else [], recovered)


async def _newest(subscription: Subscription, topic: ResolvedTopic, since: Cursor) -> Recovery:
    """The newest event alone, unless the subscriber has it: all that a topic needs whose events replace each other."""
    page = await log_for(topic.retention).aread(topic, since=None, limit=1, reverse=True)
    newest = page.events[-1] if page.events else None
    if newest is None or newest.offset != page.position.offset:
        return Recovery(subscription, page.position, [], False)
    has_it = since == Cursor(newest.offset or 0, page.position.epoch)
    return Recovery(subscription, page.position, [] if has_it else [newest], True)
