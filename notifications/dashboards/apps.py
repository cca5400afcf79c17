from __future__ import annotations

from django.apps import AppConfig


class DashboardsConfig(AppConfig):
    name = "notifications.dashboards"
    label = "hub_dashboards"
    verbose_name = "Dashboards"
