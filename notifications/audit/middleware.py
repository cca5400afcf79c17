"""Tells the audit log who sends a request, and from where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from notifications.audit.origin import Origin, acting, client_address

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class AuditMiddleware:
    """Makes the request's user and address the origin of whatever is done while it is answered."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._answer_later(request)
        with acting(_origin(request)):
            return cast("HttpResponseBase", self.get_response(request))

    async def _answer_later(self, request: HttpRequest) -> HttpResponseBase:
        with acting(_origin(request)):
            return await cast("Awaitable[HttpResponseBase]", self.get_response(request))


def _origin(request: HttpRequest) -> Origin:
    address = client_address(request.META.get("REMOTE_ADDR"), request.headers.get("X-Forwarded-For", ""))
    # The user is loaded when somebody asks for it: most requests do nothing that is noted.
    return Origin(user=lambda: getattr(request, "user", None), address=address)
