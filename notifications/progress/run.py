"""One run of a task as it is told: the data of its events, and what the page of tasks shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from notifications.events.text import storable

MAX_NOTE, MAX_ERROR, MAX_ADDRESS = 500, 2_000, 500

QUEUED, STARTED, PROGRESS = "queued", "started", "progress"
SUCCEEDED, FAILED, RETRIED = "succeeded", "failed", "retried"


@dataclass(slots=True)
class Run:
    """The state of one run; `done` and `total` count whatever the task counts."""

    id: str
    name: str
    state: str = STARTED
    done: int = 0
    total: int | None = None
    note: str = ""
    error: str = ""
    result_url: str = ""
    started_at: datetime = field(default_factory=timezone.now)
    updated_at: datetime = field(default_factory=timezone.now)
    finished_at: datetime | None = None

    def change(self, state: str, **changes: Any) -> None:
        """Set the state and what changed with it; a state that ends the run sets the time of its end."""
        self.state = state
        for name, value in changes.items():
            setattr(self, name, value)
        self.note, self.error = storable(self.note)[:MAX_NOTE], storable(self.error)[:MAX_ERROR]
        self.updated_at = timezone.now()
        self.finished_at = self.updated_at if state in (SUCCEEDED, FAILED) else None

    def as_data(self) -> dict[str, Any]:
        """The run as JSON: the data of its events."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "note": self.note,
            "started_at": self.started_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "finished_at": None if self.finished_at is None else self.finished_at.isoformat(),
            "error": self.error,
            "result_url": self.result_url,
        }
