from __future__ import annotations

from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from unfold.admin import ModelAdmin
from unfold.decorators import action
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[misc, type-arg]
    """Django's users, in the theme of the admin."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    actions_detail = ("live_sessions",)

    def has_sessions_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return request.user.has_perm("hub_delivery.view_livesession")

    # Not with the permission's own name: the theme's system check would look it up in a database that may be empty yet.
    @action(description="Live sessions", icon="sensors", permissions=["sessions"])  # type: ignore[untyped-decorator]
    def live_sessions(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show where the user is connected."""
        name = get_object_or_404(User, pk=object_id).get_username()
        return redirect(f"{reverse('admin:hub_delivery_livesession_changelist')}?{urlencode({'user': name})}")


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    """Django's groups, in the theme of the admin."""
