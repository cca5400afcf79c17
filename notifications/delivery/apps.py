from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class DeliveryConfig(AppConfig):
    name = "notifications.delivery"
    label = "hub_delivery"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from notifications.delivery import checks, revocation  # noqa: F401 - importing the checks registers them

        revocation.connect_signals()
        autodiscover_modules("rpc")
