"""The page of tasks, and what it starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import IO

from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from notifications.events.exceptions import UnknownTopic
from notifications.events.topics import resolve
from notifications.progress import exports, selectors, services
from notifications.progress.names import EXPORT_HISTORY, PRUNE_EVENTS
from notifications.web.access import staff_only
from notifications.web.problems import problem

CHUNK_BYTES = 65_536


@require_GET
@staff_only
def tasks(request: HttpRequest) -> HttpResponse:
    """Running and finished tasks."""
    return render(request, "progress/tasks.html", {"state": selectors.page_state()})


@require_POST
@staff_only
def prune(request: HttpRequest) -> HttpResponse:
    """Start pruning old events."""
    return _start(request, PRUNE_EVENTS)


@require_POST
@staff_only
def export(request: HttpRequest) -> HttpResponse:
    """Start exporting the history of the topic that the form names."""
    name = request.POST.get("topic", "").strip()
    try:
        topic = resolve(name)
    except UnknownTopic:
        return problem(400, f"There is no topic called “{name}”." if name else "Name a topic.")
    if not topic.retention.kept:
        return problem(400, f"“{name}” keeps no events, so there is nothing to export.")
    if not request.user.is_superuser and not topic.may_be_read_by(request.user):
        return problem(403, f"You may not read the history of “{name}”.")
    return _start(request, EXPORT_HISTORY, topic=name)


@require_GET
@staff_only
def download(request: HttpRequest, name: str) -> HttpResponseBase:
    """A file that a task exported for this user."""
    path = exports.path_of(name)
    if path is None:
        raise Http404
    if not selectors.may_download(exports.address_of(path), user=request.user):
        raise PermissionDenied
    file = path.open("rb")
    response = FileResponse(file, as_attachment=True, filename=path.name, content_type="application/jsonl")
    if isinstance(request, ASGIRequest):
        # Django reads a synchronous iterator to its end before it sends the first byte on an event loop.
        response.streaming_content = _chunks(file)
    return response


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk


def _start(request: HttpRequest, task: str, **kwargs: str) -> HttpResponse:
    try:
        run = services.start_task(task, user=request.user, kwargs=kwargs)
    except services.TasksUnavailable as error:
        return problem(503, str(error))
    return JsonResponse(run.as_data(), status=202)
