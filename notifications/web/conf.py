from __future__ import annotations

from django.conf import settings


def connection_address() -> str:
    """Where browsers connect: a path of this site, or the absolute ws(s) address in `HUB_CONNECTION_URL`."""
    return str(getattr(settings, "HUB_CONNECTION_URL", "/connection/websocket"))
