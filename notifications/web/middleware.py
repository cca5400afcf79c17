"""Content Security Policy of the hub's pages."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import cast
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from notifications.web.conf import connection_address

HEADER = "Content-Security-Policy"

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class ContentSecurityPolicyMiddleware:
    """Gives each request a nonce (`request.csp_nonce`) and each response the policy that goes with it.

    A response that already has a policy keeps it: a page that needs another one sets the header itself.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        request.csp_nonce = secrets.token_urlsafe(16)  # type: ignore[attr-defined]
        if self._is_async:
            return self._answer_later(request)
        return _with_policy(request, cast("HttpResponseBase", self.get_response(request)))

    async def _answer_later(self, request: HttpRequest) -> HttpResponseBase:
        return _with_policy(request, await cast("Awaitable[HttpResponseBase]", self.get_response(request)))


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    # Django's own error pages for developers are styled by an inline sheet that knows no nonce.
    if not (settings.DEBUG and response.status_code in {404, 500}):
        response.headers.setdefault(HEADER, _policy(request))
    return response


def _policy(request: HttpRequest) -> str:
    nonce = f"'nonce-{request.csp_nonce}'"  # type: ignore[attr-defined]
    # Only scripts that a page itself names: what is served from here is not all of this site's making.
    script = [nonce]
    style = ["'self'", nonce]
    if _is_admin(request):
        # The admin's theme (django-unfold) is driven by Alpine.js, which compiles the expressions in its attributes
        # with Function(), and sets inline styles in its markup. A nonce would make browsers ignore 'unsafe-inline'.
        script = ["'self'", nonce, "'unsafe-eval'"]
        style = ["'self'", "'unsafe-inline'"]
    directives = {
        "default-src": ["'self'"],
        "script-src": script,
        "style-src": style,
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'", *_socket_origin()],
        "object-src": ["'none'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
    }
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


def _is_admin(request: HttpRequest) -> bool:
    match = request.resolver_match
    return match is not None and "admin" in match.app_names


def _socket_origin() -> list[str]:
    """The origin of the sockets where they are served by another one than the pages."""
    address = urlsplit(connection_address())
    return [f"{address.scheme}://{address.netloc}"] if address.netloc else []
