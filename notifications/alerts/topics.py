from __future__ import annotations

from typing import Any

import msgspec

from notifications.events import Topic, durable

TOPIC = "alerts:all"

FIRING = "alert.firing"
CHANGED = "alert.changed"
RESOLVED = "alert.resolved"
ACKNOWLEDGED = "alert.acknowledged"


class AlertData(msgspec.Struct, frozen=True):
    """What every event of an alert has to say, so that pages can show it."""

    id: int
    name: str
    status: str
    severity: str
    starts_at: str
    labels: dict[str, str]


class AlertsTopic(Topic):
    """Every alert of the hub: it fires, its report says something new, somebody takes it, it is over."""

    pattern = TOPIC
    retention = durable(days=90)
    asks_only_identity = True
    schemas = dict.fromkeys((FIRING, CHANGED, RESOLVED, ACKNOWLEDGED), AlertData)

    def may_subscribe(self, user: Any) -> bool:
        """signed-in users"""
        return bool(user.is_authenticated)
