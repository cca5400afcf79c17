from __future__ import annotations

from typing import Any

from notifications.events import Topic, window


class TaskTopic(Topic):
    """The runs of one Celery task by its id, and of all tasks at `tasks:all`."""

    pattern = "tasks:<path:task_id>"
    retention = window(size=500, seconds=86_400)

    def may_subscribe(self, user: Any, task_id: str) -> bool:
        """staff"""
        return bool(user.is_staff)
