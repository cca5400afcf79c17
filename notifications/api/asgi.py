"""`/api/…`: the server API as a plain ASGI application, past the middleware of Django's pages."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from django.db import DatabaseError

from notifications.api import cloudevents, metrics
from notifications.api.access import identity_of_key, origin_of
from notifications.api.methods import METHODS, Method, Unavailable, call
from notifications.api.monitoring import HealthApplication, MetricsApplication
from notifications.api.openapi import ERRORS, document
from notifications.api.publishing import error_of
from notifications.audit.origin import acting
from notifications.delivery import codes, limits
from notifications.delivery.auth import Receive, Scope, Send, header
from notifications.delivery.codes import CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.delivery.responses import (
    ClientGone,
    Problem,
    Response,
    allow_only,
    content_type,
    json_response,
    read_body,
    respond,
)
from notifications.events import conf

__all__ = ["HealthApplication", "MetricsApplication", "api_application", "identity_of_key"]

logger = logging.getLogger(__name__)

# What a request may be larger than its event's data, which is a third longer in base64: the tags above all.
BODY_MARGIN_BYTES = 16_384

_HTTP_STATUS = {code: status for code, (status, _) in ERRORS.items()}


async def api_application(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of everything under `/api`, but for the page `/api/docs`, which is Django's."""
    try:
        response = await _answer(scope, receive)
    except Problem as problem:
        response = problem.response
    except ClientGone:
        return
    except Exception:
        logger.exception("a request to %s failed", scope["path"])
        response = Problem(500, "the hub failed; its log says why").response
    await respond(scope, send, response)


async def _answer(scope: Scope, receive: Receive) -> Response:
    name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/api").strip("/")
    if name == "openapi.json":
        allow_only(scope, "GET", "HEAD")
        return json_response(document())
    if name:
        method = _method(name)
    allow_only(scope, "POST")
    identity = await _authenticated(scope)
    events = method.events if name else max(known.events for known in METHODS.values())
    limit = events * (conf.get("HUB_MAX_DATA_BYTES") * 4 // 3 + BODY_MARGIN_BYTES)
    parameters = _object(await read_body(scope, receive, limit=limit))
    if not name:
        # Centrifugo's older form: the method in the body.
        method, parameters = _method(parameters.get("method")), parameters.get("params", {})
    await _limited(identity, method.name, parameters)
    try:
        if method.name == "publish" and content_type(scope) == cloudevents.CONTENT_TYPE:
            parameters = cloudevents.publish_parameters(parameters)
        with acting(origin_of(scope)):
            result = await call(method, identity, parameters)
    except CommandError as error:
        metrics.answered(method.name, error.code.code).inc()
        return _error_response(scope, error)
    metrics.answered(method.name, 0).inc()
    return json_response({"result": result} if method.wrapped else result)


def _method(name: Any) -> Method:
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        code = codes.METHOD_NOT_FOUND
        raise Problem(
            404,
            f"there is no method {name!r}; there are {', '.join(METHODS)}",
            error={"code": code.code, "message": code.reason},
        )
    return method


async def _authenticated(scope: Scope) -> Identity:
    challenge = ((b"www-authenticate", b'apikey realm="hub"'),)
    try:
        identity = await identity_of_key(scope)
    except Disconnect as error:
        raise Problem(401, "the API key is not valid, or was revoked", headers=challenge) from error
    except DatabaseError as error:
        logger.warning("an API key cannot be looked up: %s", error)
        raise Problem(503, "the API key cannot be looked up now; try again") from error
    if identity is None:
        detail = "give an API key in the header X-API-Key; one is made with `manage.py apikey create NAME`"
        raise Problem(401, detail, headers=challenge)
    return identity


async def _limited(identity: Identity, name: str, parameters: Any) -> None:
    """Raise Problem 429 when the key is used more than `HUB_MAX_API_REQUESTS_PER_SECOND`."""
    rate = conf.get("HUB_MAX_API_REQUESTS_PER_SECOND")
    if not rate:
        return
    seconds = await limits.wait_for(scope="api", subject=identity.login, rate=rate, amount=_calls_in(name, parameters))
    if seconds:
        code = codes.TOO_MANY
        metrics.answered(name, code.code).inc()
        raise Problem(
            429,
            f"this key may be used {rate} times a second; try again later",
            headers=((b"retry-after", limits.retry_after(seconds).encode()),),
            error={"code": code.code, "message": code.reason},
        )


def _calls_in(name: str, parameters: Any) -> int:
    """How often a request uses its key: once for each command of a batch, and for each channel of a broadcast."""
    if not isinstance(parameters, dict):
        return 1
    if name == "broadcast":
        channels = parameters.get("channels")
        return max(1, len(channels)) if isinstance(channels, list) else 1
    if name == "batch":
        commands = parameters.get("commands")
        named = (command for command in commands if isinstance(command, dict)) if isinstance(commands, list) else ()
        return max(1, sum(_calls_in(*one) for command in named for one in command.items()))
    return 1


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Problem(400, "the body is JSON, but not an object")
    if limits.too_deep(body, limit=(levels := conf.get("HUB_MAX_JSON_DEPTH"))):
        raise Problem(400, f"the body is JSON, but nests deeper than {levels} levels")
    return value


def _error_response(scope: Scope, error: CommandError) -> Response:
    status = 200
    if header(scope, b"x-centrifugo-error-mode").lower() == "transport":
        status = 503 if isinstance(error, Unavailable) else _HTTP_STATUS.get(error.code, 400)
    return json_response({"error": error_of(error)}, status)
