"""Reading runs of tasks."""

from __future__ import annotations

from typing import Any

from notifications.events.exceptions import LogUnavailable
from notifications.events.selectors import newest
from notifications.progress.models import TaskRun
from notifications.progress.services import ALL_TASKS, run_of
from notifications.progress.topics import TaskTopic
from notifications.web.state import cursor_state

SHOWN = 100


def page_state() -> dict[str, Any]:
    """The runs that the page of tasks opens with, running ones first, and the position that they are up to date with.

    Rows are written once a second at most, so what the kept events know better is taken from them.
    """
    try:
        # Before the rows: what happens after it reaches the page as an event.
        events, position = newest(ALL_TASKS, limit=TaskTopic.retention.size or 0)
    except LogUnavailable:
        events, cursor = [], None
    else:
        cursor = cursor_state(position)
    running = list(TaskRun.objects.filter(finished_at=None).order_by("-started_at")[:SHOWN])
    ended = TaskRun.objects.exclude(finished_at=None).order_by("-started_at")[: SHOWN - len(running)]
    tasks = {row.pk: run_of(row).as_data() for row in (*running, *ended)}
    for event in events:
        known = tasks.get(event.key or "")
        if known is not None and event.type in TaskTopic.schemas and known["updated_at"] < event.data["updated_at"]:
            known.update(event.data)
    return {"tasks": list(tasks.values()), "cursor": cursor}


def may_download(address: str, *, user: Any) -> bool:
    """Whether an exported file was made for `user`: who may read a topic may have changed since, who asked has not."""
    return bool(user.is_superuser) or TaskRun.objects.filter(result_url=address, started_by=user).exists()
