"""Events that could not be sent, in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from notifications.events.logs import outbox
from notifications.events.models import SetAsideEvent


@admin.register(SetAsideEvent)
class SetAsideEventAdmin(ModelAdmin):  # type: ignore[misc]
    """Events of durable topics that were set aside, to try again or to discard. Nobody writes an event here."""

    list_display = ("topic", "type", "reason", "error", "attempts", "time", "set_aside_at", "tried_at")
    list_filter = ("reason", "set_aside_at")
    search_fields = ("topic", "type", "error")
    fields = ("topic", "type", "time", "reason", "error", "attempts", "set_aside_at", "tried_at", "encoded")
    actions = ("try_again", "discard")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # discarding is the one way, and is noted

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("hub_events.change_setasideevent"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("hub_events.delete_setasideevent"))

    @admin.action(description="Try again", permissions=["retry"])
    def try_again(self, request: HttpRequest, queryset: QuerySet[SetAsideEvent]) -> None:
        chosen = list(queryset)
        for event in chosen:
            self.log_change(request, event, "Tried again.")
        published, others = outbox.retry([event.pk for event in chosen])
        if published:
            messages.success(request, f"Published: {published}.")
        if others:
            messages.warning(request, f"Not published: {others}. The column “error” says why.")

    @admin.action(description="Discard", permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[SetAsideEvent]) -> None:
        self.log_deletions(request, queryset)
        messages.success(request, f"Discarded: {outbox.discard([event.pk for event in queryset])}.")
