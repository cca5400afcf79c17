from __future__ import annotations

from django.apps import AppConfig


class InboxConfig(AppConfig):
    name = "notifications.inbox"
    label = "hub_inbox"
    verbose_name = "Inbox"
