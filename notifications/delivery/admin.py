"""Who is connected, in the admin."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.views.decorators.http import require_POST
from unfold.admin import ModelAdmin

from notifications.delivery import roster
from notifications.delivery.models import LiveSession
from notifications.delivery.selectors import live_sessions, still_live, user_id_of
from notifications.delivery.services import end_sessions
from notifications.events.exceptions import HubError

PER_PAGE = 50
HEADS = ("User", "Signed in with", "Address", "Client", "Protocol", "Since", "Subscriptions", "Server")


@admin.register(LiveSession)
class LiveSessionAdmin(ModelAdmin):  # type: ignore[misc]
    """Lists the connected clients, and ends their sessions. There are no rows, so there are no pages of single ones."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("hub_delivery.end_session")

    def get_urls(self) -> list[URLPattern]:
        protected = self.admin_site.admin_view
        return [
            path("", protected(self.changelist_view), name="hub_delivery_livesession_changelist"),
            path("end/", protected(require_POST(self.end_view)), name="hub_delivery_livesession_end"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = request.GET.get("user", "").strip()
        user = user_id_of(asked) if asked else None
        problem, found = "", []
        try:
            found = live_sessions(user=user)
        except HubError as error:
            problem = str(error)
        accounts = _accounts_url(request)
        page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
        context = {
            **self.admin_site.each_context(request),
            "title": "Live sessions",
            "opts": self.opts,
            "problem": problem,
            "asked": asked,
            "user_id": user,
            "page": page,
            "heads": [*HEADS, ""] if self.has_end_permission(request) else HEADS,
            "rows": [{"session": session, "cells": _cells(session, accounts)} for session in page],
            "may_end": self.has_end_permission(request),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/hub_delivery/livesession/change_list.html", context)

    def end_view(self, request: HttpRequest) -> HttpResponse:
        """End a user's sessions or a client's, and wait until they are gone from the list."""
        if not self.has_end_permission(request):
            raise PermissionDenied
        user, client = request.POST.get("user") or None, request.POST.get("client") or None
        sign_out = "sign_out" in request.POST
        try:
            ended = end_sessions(user=user, client=client, sign_out=sign_out, by=request.user)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        except HubError as error:
            messages.error(request, f"Nothing was ended: {error}")
        else:
            messages.add_message(request, *_outcome(ended, sign_out=sign_out))
        asked = request.POST.get("asked", "")
        query = f"?{urlencode({'user': asked})}" if asked else ""
        return HttpResponseRedirect(reverse("admin:hub_delivery_livesession_changelist") + query)


def _outcome(ended: list[roster.LiveSession], *, sign_out: bool) -> tuple[int, str]:
    """The level and the text of what is said after some sessions were ended."""
    try:
        left = len(still_live(ended))
    except HubError as error:
        return messages.WARNING, f"It is not known whether the sessions have ended: {error}"
    if left:
        return messages.ERROR, f"{left} of {len(ended)} sessions are still connected. Try again."
    if not ended and not sign_out:
        return messages.WARNING, "There was no such session any more."
    said = f"{len(ended)} {'session was' if len(ended) == 1 else 'sessions were'} ended"
    return messages.SUCCESS, f"{said}, and the user has to sign in again." if sign_out else f"{said}."


def _cells(session: roster.LiveSession, accounts: str) -> list[dict[str, Any]]:
    """What a row of the list says under each head."""
    is_account = accounts and session.credential == "login"
    contents: list[dict[str, Any]] = [
        {
            "text": session.name or "visitor",
            "url": f"{accounts}{quote(session.user)}/change/" if is_account else "",
        },
        {"text": session.credential},
        {"text": session.address},
        {"text": session.agent, "title": session.id},
        {"text": session.protocol},
        {"time": datetime.fromtimestamp(session.opened_at, UTC) if session.opened_at else None},
        {"text": str(session.subscriptions)},
        {"text": session.server},
    ]
    return [{"head": head, **content} for head, content in zip(HEADS, contents, strict=True)]


def _accounts_url(request: HttpRequest) -> str:
    """Where the accounts of users are in the admin; "" for who may not see them."""
    options = get_user_model()._meta
    if not request.user.has_perm(f"{options.app_label}.view_{options.model_name}"):
        return ""
    try:
        return reverse(f"admin:{options.app_label}_{options.model_name}_changelist")
    except NoReverseMatch:
        return ""
