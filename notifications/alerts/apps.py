from __future__ import annotations

from django.apps import AppConfig


class AlertsConfig(AppConfig):
    name = "notifications.alerts"
    label = "hub_alerts"
    verbose_name = "Alerts"

    def ready(self) -> None:
        from notifications.alerts import failures

        failures.connect_signals()
