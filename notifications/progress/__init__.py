"""Celery tasks that show their progress live."""

from __future__ import annotations

from notifications.progress.live import LiveTask

__all__ = ["LiveTask"]
