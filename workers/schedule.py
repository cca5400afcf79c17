"""What beat sends, and when (UTC)."""

from __future__ import annotations

from typing import Any

from celery.schedules import crontab

from notifications.progress.names import PRUNE_EVENTS

SAMPLE_SYSTEM = "hub.sample_system"
FAIL_LOST_TASKS = "hub.fail_lost_tasks"
SEND_OVERDUE_TASKS = "hub.send_overdue_tasks"
RELAY_EVENTS = "hub.relay_events"

SCHEDULE: dict[str, dict[str, Any]] = {
    "sample the system": {
        "task": SAMPLE_SYSTEM,
        "schedule": 1.0,
        # A sample that waited behind other tasks says nothing about now.
        "options": {"expires": 2.0},
    },
    "find tasks whose worker died": {
        "task": FAIL_LOST_TASKS,
        "schedule": 60.0,
        "options": {"expires": 60.0},
    },
    "find tasks that the broker lost": {
        "task": SEND_OVERDUE_TASKS,
        "schedule": 60.0,
        "options": {"expires": 60.0},
    },
    "relay what dead processes left": {
        "task": RELAY_EVENTS,
        "schedule": 60.0,
        "options": {"expires": 60.0},
    },
    "prune old events": {
        "task": PRUNE_EVENTS,
        "schedule": crontab(hour="3", minute="17"),
        "options": {"expires": 12 * 3600.0},
    },
}
