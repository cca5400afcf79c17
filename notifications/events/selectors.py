"""Reading kept events."""

from __future__ import annotations

from collections.abc import Iterable

from notifications.events.event import Cursor, Event
from notifications.events.logs import log_for
from notifications.events.topics import resolve


def history(
    topic: str, *, limit: int | None = 100, since: Cursor | None = None, reverse: bool = False
) -> tuple[list[Event], Cursor]:
    """Kept events of a topic with the topic's position at that moment, for synchronous callers.

    Raises UnknownTopic, and LogUnavailable when the topic's log cannot be reached.
    """
    resolved = resolve(topic)
    page = log_for(resolved.retention).read(resolved, since=since, limit=limit, reverse=reverse)
    return [event.decoded() for event in page.events], page.position


def newest(topic: str, *, limit: int) -> tuple[list[Event], Cursor]:
    """The newest `limit` events in order of their offsets, with the topic's position: what a page opens with."""
    events, position = history(topic, limit=limit, reverse=True)
    return events[::-1], position


def positions(topics: Iterable[str]) -> dict[str, Cursor]:
    """The positions of several topics by name, with one question per log.

    Raises UnknownTopic, and LogUnavailable when a log cannot be reached.
    """
    resolved = [resolve(topic) for topic in topics]
    found: dict[str, Cursor] = {}
    for kind in {topic.retention.kind for topic in resolved}:
        chosen = [topic for topic in resolved if topic.retention.kind is kind]
        found.update(log_for(chosen[0].retention).positions(chosen))
    return found


def position(topic: str) -> Cursor:
    """The topic's position: embedded in a page, it lets the browser begin where the page's data ended."""
    return history(topic, limit=0)[1]
