"""What happened: topic declarations, events, the logs that keep them, and `publish()`."""

from __future__ import annotations

from notifications.events.bindings import publishes
from notifications.events.event import Cursor, Event, Sender
from notifications.events.retention import durable, ephemeral, window
from notifications.events.services import Publication, apublish, publish, publish_many
from notifications.events.topics import Topic, user_topic

__all__ = [
    "Cursor",
    "Event",
    "Publication",
    "Sender",
    "Topic",
    "apublish",
    "durable",
    "ephemeral",
    "publish",
    "publish_many",
    "publishes",
    "user_topic",
    "window",
]
