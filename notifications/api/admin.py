"""API keys in the admin."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from notifications.api.models import ApiKey
from notifications.api.patterns import parse_patterns
from notifications.api.services import change_api_key, create_api_key, revoke_api_key


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):  # type: ignore[misc]
    """Makes keys and revokes them. A key is shown once, right after it was made."""

    list_display = ("name", "shown_prefix", "topics", "state", "last_used_at", "created_at", "created_by")
    list_filter = ("revoked_at",)
    search_fields = ("name", "prefix")
    fields = ("name", "patterns", "shown_prefix", "created_at", "created_by", "last_used_at", "revoked_at")
    readonly_fields = ("shown_prefix", "created_at", "created_by", "last_used_at", "revoked_at")
    list_select_related = ("created_by",)
    actions = ("revoke_selected",)
    # A button of the form, because a link would revoke by GET.
    actions_submit_line = ("revoke_one",)

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        return ("name", "patterns") if obj is None else self.fields

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Never: a revoked key stays, and tells who made it and when it was used last."""
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: ModelForm[ApiKey], change: bool) -> None:
        patterns = parse_patterns(obj.patterns)
        if change:
            change_api_key(key=obj, name=obj.name, patterns=patterns)
            for button in self.get_actions_submit_line(request, obj.pk):
                if button.action_name in request.POST:
                    button.method(request, obj)
            return
        key, text = create_api_key(name=obj.name, patterns=patterns, created_by=request.user)
        obj.__dict__.update(key.__dict__)
        shown = format_html("The key is <code>{}</code> Copy it now: it is not stored, and never shown again.", text)
        messages.warning(request, shown)

    @display(description="Topics")  # type: ignore[untyped-decorator]
    def topics(self, key: ApiKey) -> str:
        return ", ".join(key.patterns.splitlines())

    @display(description="State", label={"valid": "success", "revoked": "danger"})  # type: ignore[untyped-decorator]
    def state(self, key: ApiKey) -> str:
        return "valid" if key.revoked_at is None else "revoked"

    @admin.action(description="Revoke the selected keys", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset:
            self._revoke(request, key)

    @action(description="Revoke", permissions=["change"])  # type: ignore[untyped-decorator]
    def revoke_one(self, request: HttpRequest, obj: ApiKey) -> None:
        self._revoke(request, obj)

    def _revoke(self, request: HttpRequest, key: ApiKey) -> None:
        revoke_api_key(key=key)
        self.log_change(request, key, "Revoked.")
        messages.success(request, f"{key} is revoked: it is refused from now on.")
