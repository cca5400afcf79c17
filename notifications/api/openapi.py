"""The OpenAPI 3.1 document of the API, made from the table of its methods."""

from __future__ import annotations

import functools
import json
import shlex
from typing import Any, NamedTuple

import msgspec

import notifications
from notifications.api.cloudevents import CONTENT_TYPE, CloudEvent
from notifications.api.methods import COMMANDS, METHODS, Method
from notifications.api.shapes import REFERENCE, Error
from notifications.delivery import codes

#: What an error's code means, and the HTTP status that goes with it on request.
ERRORS = {
    codes.INTERNAL: (500, "Something failed in the hub, or its log cannot be reached (503); try again."),
    codes.UNKNOWN_TOPIC: (404, "No declaration matches the topic."),
    codes.PERMISSION_DENIED: (
        403,
        "The key's topics do not include this one; what is about users or functions needs a key for every topic.",
    ),
    codes.METHOD_NOT_FOUND: (404, "There is no such method, or function."),
    codes.LIMIT_EXCEEDED: (400, "A batch has too many commands, or a broadcast too many topics."),
    codes.BAD_REQUEST: (400, "The request lacks something, or something in it does not fit; the message says what."),
    codes.NOT_AVAILABLE: (400, "The topic does not have what was asked for: history, or presence."),
    codes.UNRECOVERABLE_POSITION: (416, "The epoch of `since` is not the topic's any more."),
}

PROBLEM = {
    "title": "Problem",
    "type": "object",
    "description": "What is wrong with a request (RFC 9457).",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "error": {"$ref": f"{REFERENCE}Error"},
    },
    "required": ["title", "status", "detail"],
}

PROBLEMS = {
    "400": "The body is not JSON, or not an object.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such method.",
    "413": "The body is too large.",
    "429": "The key is used more often than HUB_MAX_API_REQUESTS_PER_SECOND; `Retry-After` says when to try again.",
    "500": "Something failed in the hub.",
    "503": "The API key cannot be looked up now; try again.",
}


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    shapes: list[Any] = [CloudEvent, Error]
    for method in METHODS.values():
        shapes += [method.request, method.result]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=REFERENCE + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Notification hub",
            "version": notifications.__version__,
            "description": "Publish events to topics, read what they keep and act on who is connected, in the shapes "
            "of Centrifugo's server API. A method that fails answers 200 with an error, or with the error's own HTTP "
            "status where the request has the header `X-Centrifugo-Error-Mode: transport`.",
        },
        "security": [{"header": []}, {"authorization": []}, {"query": []}],
        "paths": {f"/api/{method.name}": {"post": _operation(method)} for method in METHODS.values()},
        "components": {
            "schemas": {**schemas, **_commands_and_replies(), "Problem": PROBLEM},
            "securitySchemes": {
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "authorization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`apikey` and the key.",
                },
                "query": {"type": "apiKey", "in": "query", "name": "api_key"},
            },
        },
    }


def _reference(shape: type) -> dict[str, str]:
    return {"$ref": REFERENCE + shape.__name__}


def _operation(method: Method) -> dict[str, Any]:
    summary, _, description = method.description.partition("\n")
    content: dict[str, Any] = {"application/json": {"schema": _reference(method.request), "example": method.example}}
    if method.name == "publish":
        content[CONTENT_TYPE] = {"schema": _reference(CloudEvent), "example": CLOUD_EVENT}
    operation: dict[str, Any] = {
        "operationId": method.name,
        "summary": summary,
        "parameters": [
            {
                "name": "X-Centrifugo-Error-Mode",
                "in": "header",
                "description": "`transport` answers errors with their own HTTP status.",
                "schema": {"type": "string", "enum": ["transport"]},
            }
        ],
        "requestBody": {"required": True, "content": content},
        "responses": _responses(method),
    }
    if description.strip():
        operation["description"] = description.strip()
    return operation


def _responses(method: Method) -> dict[str, Any]:
    result, error = _reference(method.result), _only("error", _reference(Error))
    answer = _only("result", result) if method.wrapped else result
    responses: dict[str, Any] = {
        "200": {
            "description": "The result, or an error.",
            "content": {"application/json": {"schema": {"oneOf": [answer, error]}}},
        }
    }
    on_request = {str(status) for status, _ in ERRORS.values()} | {"503"}
    for status in sorted(on_request | PROBLEMS.keys()):
        content = {}
        if status in PROBLEMS:
            content["application/problem+json"] = {"schema": {"$ref": f"{REFERENCE}Problem"}}
        if status in on_request:
            content["application/json"] = {"schema": error}
        responses[status] = {"description": PROBLEMS.get(status, "An error, with its own status."), "content": content}
    return responses


def _only(name: str, schema: dict[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


def _commands_and_replies() -> dict[str, Any]:
    """The schemas of what a batch is made of."""
    replies = [_only(method.name, _reference(method.result)) for method in COMMANDS]
    return {
        "Command": {
            "title": "Command",
            "description": "The name of a method, with its request.",
            "oneOf": [_only(method.name, _reference(method.request)) for method in COMMANDS],
        },
        "Reply": {
            "title": "Reply",
            "description": "The name of the method, with its result, or an error.",
            "oneOf": [*replies, _only("error", _reference(Error))],
        },
    }


CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "41",
    "source": "/shop",
    "type": "chat.message",
    "subject": "chat:lobby",
    "data": {"message": "Hello from a CloudEvent"},
}


class Field(NamedTuple):
    """A field of a request, in words."""

    name: str
    kind: str
    required: bool
    description: str


def fields_of(method: Method) -> list[Field]:
    """The fields of a method's request."""
    schemas = document()["components"]["schemas"]
    schema = schemas[method.request.__name__]
    fields = [
        Field(name, _kind(field, schemas), name in schema.get("required", ()), field.get("description", ""))
        for name, field in schema["properties"].items()
    ]
    return sorted(fields, key=lambda field: not field.required)


def _kind(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The type of a JSON Schema, in a few words."""
    if "$ref" in schema:
        referred = schemas[schema["$ref"].removeprefix(REFERENCE)]
        if "properties" not in referred:
            return "object"
        inner = ", ".join(f"{name}: {_kind(field, schemas)}" for name, field in referred["properties"].items())
        return f"{{{inner}}}"
    if "anyOf" in schema:
        kinds = [_kind(choice, schemas) for choice in schema["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "null")
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"array of {_kind(schema['items'], schemas)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'], schemas)}"
    return str(kind)


def curl(path: str, body: dict[str, Any], *, origin: str, content_type: str = "") -> str:
    """A command line that sends a request; the key is taken from the variable HUB_API_KEY."""
    header = f" -H {shlex.quote(f'Content-Type: {content_type}')}" if content_type else ""
    text = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f'curl -H "X-API-Key: $HUB_API_KEY"{header} \\\n  -d {text} \\\n  {origin}{path}'
