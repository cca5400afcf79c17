from __future__ import annotations

from django.apps import AppConfig


class HubConfig(AppConfig):
    name = "hub"
    label = "hub"
    verbose_name = "Notification hub"

    def ready(self) -> None:
        import workers  # noqa: F401 - makes the hub's Celery application the default one of this process
        from hub import activity

        activity.bind()
