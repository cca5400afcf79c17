"""Errors that publishers and readers of events can meet."""

from __future__ import annotations


class HubError(Exception):
    """Base of every error the hub raises itself."""


class UnknownTopic(HubError, LookupError):
    """No declaration matches the topic's name: it does not exist."""


class InvalidEvent(HubError, ValueError):
    """The event cannot be published as it is; nothing was written."""


class EventTooLarge(InvalidEvent):
    """The event's data is larger than `HUB_MAX_DATA_BYTES`; nothing was written."""


class NothingKept(HubError, ValueError):
    """The topic keeps no events, so there is no history."""


class LogUnavailable(HubError):
    """The log could not be reached, so the event was not published and may be published again."""


class InEventLoop(HubError, RuntimeError):
    """`publish()` was called on a thread whose event loop is running; it would stop the loop."""
