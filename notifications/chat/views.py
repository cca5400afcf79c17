"""The pages of chat."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe

from notifications.chat import selectors
from notifications.events.exceptions import UnknownTopic
from notifications.events.topics import ResolvedTopic, resolve


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """The rooms that have history, and the way to any other: `?room=` leads there."""
    if room := request.GET.get("room", "").strip():
        _topic_of(room)
        return redirect("chat-room", room)
    return render(request, "chat/index.html", {"rooms": selectors.rooms_with_history()})


@require_safe
def room(request: HttpRequest, room: str) -> HttpResponse:
    """One room, opened with its newest messages, for whoever may subscribe to its topic."""
    if not _topic_of(room).allows("subscribe", request.user):
        if request.user.is_authenticated:
            raise PermissionDenied
        return redirect_to_login(request.get_full_path())
    rooms = selectors.rooms_with_history() if request.user.is_authenticated else []
    context = {"room": room, "rooms": rooms, "state": selectors.room_state(room)}
    return render(request, "chat/room.html", context)


def _topic_of(room: str) -> ResolvedTopic:
    try:
        return resolve(selectors.room_topic(room))
    except UnknownTopic as error:
        raise Http404("no room can have this name") from error
