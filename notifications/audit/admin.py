"""The audit log in the admin, to read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from notifications.audit.models import AuditEntry


@admin.register(AuditEntry)
class AuditEntryAdmin(ModelAdmin):  # type: ignore[misc]
    """Who did what, when, and from where. Nobody changes or deletes an entry, superusers included."""

    list_display = ("time", "action", "subject", "actor_name", "address")
    list_filter = ("action", "time")
    list_select_related = ("actor",)
    date_hierarchy = "time"
    search_fields = ("subject", "actor_name", "action", "address")
    fields = ("time", "action", "subject", "actor_name", "actor", "address", "details")
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
