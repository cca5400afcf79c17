from __future__ import annotations

from typing import Any

import msgspec

from notifications.events import Topic, window
from notifications.progress.run import FAILED, PROGRESS, RETRIED, STARTED, SUCCEEDED


class TaskData(msgspec.Struct, frozen=True):
    """What every event of a run has to say, so that the page of tasks can show it."""

    id: str
    name: str
    state: str
    done: int
    started_at: str
    updated_at: str


class TaskTopic(Topic):
    """The runs of one Celery task by its id, and of all tasks at `tasks:all`."""

    pattern = "tasks:<path:task_id>"
    retention = window(size=500, seconds=86_400)
    schemas = {f"task.{state}": TaskData for state in (STARTED, PROGRESS, SUCCEEDED, FAILED, RETRIED)}

    def may_subscribe(self, user: Any, task_id: str) -> bool:
        """staff"""
        return bool(user.is_staff)
