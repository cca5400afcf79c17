"""The Celery application, its tasks and their schedule: `celery -A workers worker`, `celery -A workers beat`."""

from __future__ import annotations

from workers.celery import app

__all__ = ["app"]
