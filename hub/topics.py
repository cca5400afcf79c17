from __future__ import annotations

from typing import Any

from notifications.events import Topic, durable


class ActivityTopic(Topic):
    """What happens to users and groups of this hub."""

    pattern = "activity:staff"
    retention = durable(days=90)

    def may_subscribe(self, user: Any) -> bool:
        """staff"""
        return bool(user.is_staff)
