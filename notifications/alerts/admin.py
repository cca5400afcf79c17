from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from notifications.alerts import services
from notifications.alerts.models import Alert


@admin.register(Alert)
class AlertAdmin(ModelAdmin):  # type: ignore[misc]
    """Alerts to look up; they change by what their source reports and by acknowledgement alone."""

    list_display = ("name", "severity", "status", "source", "summary", "starts_at", "last_seen_at", "count")
    list_filter = ("status", "severity", "source")
    search_fields = ("name", "summary", "fingerprint", "labels")
    ordering = ("-last_seen_at",)
    actions = ("acknowledge",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # open pages would go on showing it, and its source would report it again

    @admin.action(description="Acknowledge the chosen alerts", permissions=["view"])
    def acknowledge(self, request: HttpRequest, queryset: QuerySet[Alert]) -> None:
        for alert in queryset:
            services.acknowledge(alert=alert, user=request.user)
