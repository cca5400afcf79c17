"""What pages are opened with: events and cursors as the browser kit reads them."""

from __future__ import annotations

from typing import Any

import msgspec

from notifications.events import Cursor, Event


def cursor_state(cursor: Cursor) -> dict[str, Any]:
    """A cursor, from which the page's subscription goes on."""
    return {"offset": cursor.offset, "epoch": cursor.epoch}


def event_state(event: Event) -> dict[str, Any]:
    """An event as the kit shows it."""
    state: dict[str, Any] = msgspec.to_builtins(event)
    return state


def feed_state(events: list[Event], position: Cursor) -> dict[str, Any]:
    """The events that a page shows when it opens, and the position behind the newest."""
    return {"events": [event_state(event) for event in events], "cursor": cursor_state(position)}
