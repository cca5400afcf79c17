from __future__ import annotations

from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "notifications.audit"
    label = "hub_audit"
    verbose_name = "Audit"
