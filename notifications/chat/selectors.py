"""Reads of chat rooms, from the log of their topics: a room is nothing but its topic."""

from __future__ import annotations

from typing import Any

from django.db.models import OuterRef, Subquery

from notifications.chat.topics import MESSAGE
from notifications.events import Event
from notifications.events.models import StoredEvent, TopicHead
from notifications.events.selectors import newest
from notifications.web.state import cursor_state, event_state

PREFIX = "chat:"
OPENING_MESSAGES = 100
LISTED_ROOMS = 50


def room_topic(room: str) -> str:
    """The topic of a room."""
    return f"{PREFIX}{room}"


def rooms_with_history(*, limit: int = LISTED_ROOMS) -> list[str]:
    """The names of rooms whose log keeps anything, the one with the newest event first."""
    last = StoredEvent.objects.filter(topic=OuterRef("topic"), offset=OuterRef("offset"))
    heads = (
        TopicHead.objects.filter(topic__startswith=PREFIX)
        .annotate(last_at=Subquery(last.values("time")[:1]))
        .filter(last_at__isnull=False)
        .order_by("-last_at", "topic")
    )
    return [name.removeprefix(PREFIX) for name in heads.values_list("topic", flat=True)[:limit]]


def room_state(room: str) -> dict[str, Any]:
    """The newest messages of a room, and the position behind them. Raises UnknownTopic for an invalid name."""
    events, position = newest(room_topic(room), limit=OPENING_MESSAGES)
    messages = [event_state(event) for event in events if _is_message(event)]
    return {"messages": messages, "cursor": cursor_state(position)}


def _is_message(event: Event) -> bool:
    """Whether a room shows the event: chat messages, and whatever else reads like one."""
    said = event.data.get("message") if isinstance(event.data, dict) else None
    return event.type == MESSAGE or isinstance(said, str)
