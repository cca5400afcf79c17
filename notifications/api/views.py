"""The page that documents the API."""

from __future__ import annotations

import json
import re

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe

from notifications.api.cloudevents import CONTENT_TYPE
from notifications.api.methods import METHODS
from notifications.api.openapi import CLOUD_EVENT, ERRORS, PROBLEMS, curl, document, fields_of


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Every method with its fields, an example and a command line, made from the table that serves them."""
    origin = f"{request.scheme}://{request.get_host()}"
    paths = document()["paths"]
    methods = []
    for method in METHODS.values():
        path = f"/api/{method.name}"
        operation = paths[path]["post"]
        methods.append(
            {
                "name": method.name,
                "path": path,
                "summary": _marked_up(operation["summary"]),
                "description": _marked_up(operation.get("description", "")),
                "fields": [field._replace(description=_marked_up(field.description)) for field in fields_of(method)],
                "example": json.dumps(method.example, indent=2, ensure_ascii=False),
                "curl": curl(path, method.example, origin=origin),
            }
        )
    context = {
        "methods": methods,
        "errors": [(code.code, code.reason, status, _marked_up(text)) for code, (status, text) in ERRORS.items()],
        "problems": PROBLEMS,
        "cloud_event": curl("/api/publish", CLOUD_EVENT, origin=origin, content_type=CONTENT_TYPE),
    }
    return render(request, "api/docs.html", context)


def _marked_up(text: str) -> SafeString:
    """A text of the OpenAPI document, in which names stand between backticks, as HTML."""
    return mark_safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))  # noqa: S308 - escaped here
