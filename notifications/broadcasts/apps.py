from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import pre_delete


class BroadcastsConfig(AppConfig):
    name = "notifications.broadcasts"
    label = "hub_broadcasts"
    verbose_name = "Broadcasts"

    def ready(self) -> None:
        from notifications.broadcasts import services

        # A signal, because a broadcast is also deleted by lists of the admin and together with its group.
        pre_delete.connect(services.broadcast_deleted, sender="hub_broadcasts.Broadcast", dispatch_uid="hub-broadcasts")
