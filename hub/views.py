"""Pages of the hub itself."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from hub.activity import TOPIC
from notifications.events.selectors import newest
from notifications.web.access import staff_only
from notifications.web.state import feed_state

OPENING_EVENTS = 100


@staff_only
def activity(request: HttpRequest) -> HttpResponse:
    """What happened to users and groups, for staff."""
    return render(request, "hub/activity.html", {"state": feed_state(*newest(TOPIC, limit=OPENING_EVENTS))})


@login_required
def lobby(request: HttpRequest) -> HttpResponse:
    """A chat in ten lines of plain JavaScript."""
    return render(request, "chat/lobby.html")
