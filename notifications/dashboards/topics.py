from __future__ import annotations

from typing import Any

from notifications.events import Topic, window


class DashboardTopic(Topic):
    """The samples behind the charts of a dashboard."""

    pattern = "dashboard:<path:name>"
    retention = window(size=600, seconds=900)
    default_type = "sample"
    asks_only_identity = True

    def may_subscribe(self, user: Any, name: str) -> bool:
        """signed-in users"""
        return bool(user.is_authenticated)
