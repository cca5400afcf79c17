"""The ASGI application of a server process: `uvicorn hub.asgi:application`, or `manage.py runhub`."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")
django = get_asgi_application()

from hub.embedded import embedded_worker  # noqa: E402 - Django must be set up before
from notifications.api.asgi import HealthApplication, MetricsApplication, api_application, identity_of_key  # noqa: E402
from notifications.chat.routing import websocket_urlpatterns  # noqa: E402
from notifications.delivery.stream import EventStream  # noqa: E402
from notifications.server.routing import hub_application  # noqa: E402

application = hub_application(
    django=django,
    http={
        "/events": EventStream(identify=identity_of_key),
        "/api/docs": django,
        "/api": api_application,
        "/metrics": MetricsApplication(),
        "/health": HealthApplication(),
    },
    websockets=websocket_urlpatterns,
    around=embedded_worker,
    root_path=settings.ROOT_PATH,
)
