"""The WebSocket routes of the tutorial's plain protocol."""

from __future__ import annotations

from django.urls import path

from notifications.delivery.consumers import PlainConsumer

websocket_urlpatterns = [
    path("ws/chat/<path:room>/", PlainConsumer.as_asgi(topic="chat:{room}")),
    path("ws/socket-server/", PlainConsumer.as_asgi(topic="chat:{room}", room="lobby")),
]
