from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin
from unfold.decorators import action

from notifications.broadcasts import selectors, services
from notifications.broadcasts.models import Broadcast


@admin.register(Broadcast)
class BroadcastAdmin(ModelAdmin):  # type: ignore[misc]
    """Where administrators write to everyone.

    Publish and Retract are buttons beside Save: they send the form, so no link can press them.
    """

    list_display = ("__str__", "status", "severity", "audience", "starts_at", "ends_at", "dismissed_by", "created_by")
    list_filter = ("status", "severity", "audience")
    list_select_related = ("created_by",)
    search_fields = ("text",)
    ordering = ("-created_at",)
    fieldsets = (
        (None, {"fields": ("text", "severity", "dismissible")}),
        ("Audience", {"fields": ("audience", "group")}),
        ("Time", {"fields": ("starts_at", "ends_at")}),
        (
            "What happened",
            {"fields": ("status", "created_by", "published_at", "retracted_at", "dismissed_by")},
        ),
    )
    readonly_fields = ("status", "created_by", "published_at", "retracted_at", "dismissed_by")
    actions = ("publish_chosen", "retract_chosen")
    actions_submit_line = ("publish", "retract")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Broadcast]:
        return selectors.with_receipt_counts(super().get_queryset(request))

    def get_readonly_fields(self, request: HttpRequest, obj: Broadcast | None = None) -> tuple[str, ...]:
        if obj is not None and obj.published_at is not None:
            return (*self.readonly_fields, "audience", "group")
        return self.readonly_fields

    @admin.display(description="dismissed by", ordering="dismissals")
    def dismissed_by(self, broadcast: Broadcast) -> int:
        return getattr(broadcast, "dismissals", 0)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if object_id is None:  # on the page of a new one the theme shows no such buttons by itself
            buttons = self.get_actions_submit_line(request, None)
            extra_context = {**(extra_context or {}), "actions_submit_line": buttons}
        response: HttpResponse = super().changeform_view(request, object_id, form_url, extra_context)
        return response

    def get_actions_submit_line(self, request: HttpRequest, object_id: Any) -> list[Any]:
        chosen = Broadcast.objects.filter(pk=object_id).first() if object_id else None
        unwanted = "publish" if chosen and chosen.status == Broadcast.Status.PUBLISHED else "retract"
        buttons = super().get_actions_submit_line(request, object_id)
        return [button for button in buttons if not button.action_name.endswith(f"_{unwanted}")]

    def save_model(self, request: HttpRequest, obj: Broadcast, form: Any, change: bool) -> None:
        buttons = self.get_actions_submit_line(request, obj.pk)
        services.save_broadcast(broadcast=obj, by=request.user)
        for button in buttons:
            if button.action_name in request.POST:
                button.method(request, obj)

    @action(description="Publish", icon="campaign", permissions=["change"])  # type: ignore[untyped-decorator]
    def publish(self, request: HttpRequest, obj: Broadcast) -> None:
        self._publish(request, obj)

    @action(description="Retract", icon="undo", permissions=["change"])  # type: ignore[untyped-decorator]
    def retract(self, request: HttpRequest, obj: Broadcast) -> None:
        services.retract_broadcast(broadcast=obj)

    @admin.action(description="Publish the chosen broadcasts", permissions=["change"])
    def publish_chosen(self, request: HttpRequest, queryset: QuerySet[Broadcast]) -> None:
        for broadcast in queryset:
            self._publish(request, broadcast)

    @admin.action(description="Retract the chosen broadcasts", permissions=["change"])
    def retract_chosen(self, request: HttpRequest, queryset: QuerySet[Broadcast]) -> None:
        for broadcast in queryset:
            services.retract_broadcast(broadcast=broadcast)

    def _publish(self, request: HttpRequest, broadcast: Broadcast) -> None:
        try:
            services.publish_broadcast(broadcast=broadcast, by=request.user)
        except ValidationError as error:
            self.message_user(request, f"Not published: {' '.join(error.messages)}", messages.ERROR)
