"""The ASGI extension `hub.abort`: a function that ends the connection of an HTTP request at once.

ASGI has no way to say so. And a server that is told of the end of an answer waits until the client has taken what was
sent before, for ever if that has stopped reading.
"""

from __future__ import annotations

from notifications.delivery.auth import Scope, Send


def abortable(scope: Scope, send: Send) -> Scope:
    """The scope with the extension, where the server is uvicorn: its `send` belongs to what has the connection."""
    connection = getattr(getattr(send, "__self__", None), "transport", None)
    abort = getattr(connection, "abort", None)
    if abort is None:
        return scope
    return {**scope, "extensions": {**(scope.get("extensions") or {}), "hub.abort": abort}}
