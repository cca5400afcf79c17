"""`/api/…`: the server API as a plain ASGI application, past the middleware of Django's pages."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from django.db import DatabaseError

from notifications.api import cloudevents, metrics
from notifications.api.access import identity_of_key
from notifications.api.methods import METHODS, Method, error_of
from notifications.api.monitoring import HealthApplication, MetricsApplication
from notifications.api.openapi import ERRORS, document
from notifications.api.responses import (
    ClientGone,
    Problem,
    Response,
    allow_only,
    json_response,
    read_body,
    respond,
)
from notifications.delivery import codes
from notifications.delivery.auth import Receive, Scope, Send, header
from notifications.delivery.codes import CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable

__all__ = ["HealthApplication", "MetricsApplication", "api_application", "identity_of_key"]

logger = logging.getLogger(__name__)

# What a request may be larger than its event's data.
BODY_MARGIN_BYTES = 4_096

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
    parameters = _object(await read_body(scope, receive, limit=conf.get("HUB_MAX_DATA_BYTES") + BODY_MARGIN_BYTES))
    if not name:
        # Centrifugo's older form: the method in the body.
        method, parameters = _method(parameters.get("method")), parameters.get("params", {})
    content_type = header(scope, b"content-type").partition(";")[0].strip().lower()
    try:
        if method.name == "publish" and content_type == cloudevents.CONTENT_TYPE:
            parameters = cloudevents.publish_parameters(parameters)
        result = await _served(method, identity, parameters)
    except CommandError as error:
        metrics.answered(method.name, error.code.code).inc()
        return _error_response(scope, error)
    metrics.answered(method.name, 0).inc()
    return json_response({"result": result})


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


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Problem(400, "the body is JSON, but not an object")
    return value


async def _served(method: Method, identity: Identity, parameters: Any) -> msgspec.Struct:
    try:
        return await method.serve(identity, msgspec.convert(parameters, method.request))
    except msgspec.ValidationError as error:
        raise CommandError(codes.BAD_REQUEST, str(error)) from error
    except CommandError:
        raise
    except (LogUnavailable, DatabaseError) as error:
        logger.warning("%s cannot be served: %s", method.name, error)
        raise Unavailable from error
    except Exception as error:
        logger.exception("%s failed", method.name)
        raise CommandError(codes.INTERNAL) from error


class Unavailable(CommandError):
    """Something that the method needs cannot be reached now."""

    def __init__(self) -> None:
        super().__init__(codes.INTERNAL)


def _error_response(scope: Scope, error: CommandError) -> Response:
    status = 200
    if header(scope, b"x-centrifugo-error-mode").lower() == "transport":
        status = 503 if isinstance(error, Unavailable) else _HTTP_STATUS.get(error.code, 500)
    return json_response({"error": error_of(error)}, status)
