from __future__ import annotations

from django.apps import AppConfig


class DeliveryConfig(AppConfig):
    name = "notifications.delivery"
    label = "hub_delivery"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from notifications.delivery import revocation

        revocation.connect_signals()
