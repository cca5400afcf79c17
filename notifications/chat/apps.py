from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "notifications.chat"
    label = "hub_chat"
    verbose_name = "Chat"
