"""Puts the parts of a server process together as one ASGI application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from notifications.delivery.auth import Application, IdentityMiddleware, Receive, Scope, Send, refuse
from notifications.delivery.consumers import CentrifugeConsumer
from notifications.delivery.emulation import emulation_applications
from notifications.server.aborting import abortable
from notifications.server.lifespan import Around, Lifespan


class PathRouter:
    """Sends requests whose path begins as given to applications beside Django, past the middleware of its pages."""

    def __init__(self, applications: Mapping[str, Application], django: Application) -> None:
        self.applications = dict(applications)
        self.django = django

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        for prefix, application in self.applications.items():
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                await application(abortable(scope, send), receive, send)
                return
        await self.django(scope, receive, send)


def hub_application(
    *,
    django: Application,
    http: Mapping[str, Application] | None = None,
    websockets: Sequence[Any] = (),
    around: Around | None = None,
    root_path: str = "",
) -> Application:
    """The ASGI application of a server process.

    `django` serves everything that `http` (by path prefix) does not; `websockets` are URL patterns beside
    `/connection/websocket`; `around` runs as long as the process serves. The transports for clients that cannot have
    a WebSocket are `/connection/http_stream` and `/connection/sse`, with `/emulation`. `root_path` is where a proxy has
    all this, such as `/hub`, whether or not it takes that off the paths of requests.
    """
    routes = [path("connection/websocket", CentrifugeConsumer.as_asgi()), *websockets]
    application: Application = ProtocolTypeRouter(
        {
            "http": PathRouter({**emulation_applications(), **(http or {})}, django),
            "websocket": IdentityMiddleware(_NotFound(URLRouter(routes))),
            "lifespan": Lifespan(around),
        }
    )
    return Mounted(application, root_path) if root_path else application


class Mounted:
    """Serves an application under a path of its own, as the root path of ASGI (which `path` begins with) says."""

    def __init__(self, application: Application, root_path: str) -> None:
        self.application = application
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path: str = scope["path"]
            if not path.startswith(f"{self.root_path}/"):
                path = self.root_path + path
            scope = {**scope, "root_path": self.root_path, "path": path}
        await self.application(scope, receive, send)


class _NotFound:
    """Answers a WebSocket on a path that nothing serves with a 404, where URLRouter would raise."""

    def __init__(self, router: Any) -> None:
        self.router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        if any(route.pattern.match(path) for route in self.router.routes):
            await self.router(scope, receive, send)
        else:
            await refuse(scope, send, 404, f"no WebSocket is served on {scope['path']}")
