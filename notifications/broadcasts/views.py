"""Dismissing a broadcast."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from notifications.broadcasts import selectors, services
from notifications.broadcasts.models import Broadcast
from notifications.web.problems import problem, signed_in


@require_POST
@signed_in
def dismiss(request: HttpRequest, broadcast_id: int) -> HttpResponse:
    """Never show a broadcast to this user again."""
    known = selectors.addressed_to(request.user).exclude(status=Broadcast.Status.DRAFT)
    broadcast = known.filter(pk=broadcast_id).first()
    if broadcast is None:
        return problem(404, "There is no such announcement.")
    try:
        services.dismiss_broadcast(broadcast=broadcast, user=request.user)
    except ValidationError as error:
        return problem(409, " ".join(error.messages))
    return HttpResponse(status=204)
