from __future__ import annotations

from typing import Any

from notifications.events import Topic, durable

TOPIC = "alerts:all"

FIRING = "alert.firing"
CHANGED = "alert.changed"
RESOLVED = "alert.resolved"
ACKNOWLEDGED = "alert.acknowledged"


class AlertsTopic(Topic):
    """Every alert of the hub: it fires, its report says something new, somebody takes it, it is over."""

    pattern = TOPIC
    retention = durable(days=90)

    def may_subscribe(self, user: Any) -> bool:
        """signed-in users"""
        return bool(user.is_authenticated)
