"""Refusals of views that scripts and other services call: problem documents (RFC 9457), never a login page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Concatenate, ParamSpec

from django.http import HttpRequest, HttpResponse, JsonResponse

P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponse]


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """An answer with an HTTP status and a sentence that says what is wrong."""
    document = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JsonResponse(document, status=status, content_type="application/problem+json", headers=headers)


def signed_in(view: View[P]) -> View[P]:
    """Answers visitors with a 401, where `login_required` would send a script to a page."""

    @functools.wraps(view)
    def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        if not request.user.is_authenticated:
            return problem(HTTPStatus.UNAUTHORIZED, "You are signed out. Sign in again.")
        return view(request, *args, **kwargs)

    return checked
