from __future__ import annotations

from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "notifications.api"
    label = "hub_api"
    verbose_name = "HTTP API"

    def ready(self) -> None:
        from notifications.api.access import stored_patterns
        from notifications.delivery import keys

        keys.register(stored_patterns)
