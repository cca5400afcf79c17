"""Names of the tasks that the page of tasks starts; they are defined where the Celery application is."""

from __future__ import annotations

PRUNE_EVENTS = "hub.prune_events"
EXPORT_HISTORY = "hub.export_history"
