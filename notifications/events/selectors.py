"""Reading kept events."""

from __future__ import annotations

from collections.abc import Iterable

from notifications.events.event import Cursor, Event
from notifications.events.logs import Log, log_for
from notifications.events.retention import Kind
from notifications.events.topics import ResolvedTopic, resolve


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
    found: dict[str, Cursor] = {}
    for log, chosen in _by_log(topics):
        found.update(log.positions(chosen))
        for topic in chosen:
            if topic.retention.kept and not found[topic.name].epoch:
                # Nothing was ever published here. With an epoch a reader is told if that run of offsets is lost.
                found[topic.name] = log.read(topic, since=None, limit=0).position
    return found


async def apositions(topics: Iterable[str]) -> dict[str, Cursor]:
    """`positions()` for event-loop code."""
    found: dict[str, Cursor] = {}
    for log, chosen in _by_log(topics):
        found.update(await log.aopen(chosen))
    return found


def _by_log(topics: Iterable[str]) -> list[tuple[Log, list[ResolvedTopic]]]:
    chosen: dict[Log, list[ResolvedTopic]] = {}
    # The database last: what a repeatable read sees from then on is no older than the positions in other logs.
    for topic in sorted(map(resolve, topics), key=lambda topic: topic.retention.kind is Kind.DURABLE):
        chosen.setdefault(log_for(topic.retention), []).append(topic)
    return list(chosen.items())


def position(topic: str) -> Cursor:
    """The topic's position: embedded in a page, it lets the browser begin where the page's data ended."""
    return history(topic, limit=0)[1]
