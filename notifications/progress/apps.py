from __future__ import annotations

from django.apps import AppConfig


class ProgressConfig(AppConfig):
    name = "notifications.progress"
    label = "hub_progress"
    verbose_name = "Tasks"
