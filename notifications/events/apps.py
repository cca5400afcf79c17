from __future__ import annotations

from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "notifications.events"
    label = "hub_events"
    verbose_name = "Events"

    def ready(self) -> None:
        from notifications.events import bridge, checks, conf  # noqa: F401 - importing the checks registers them
        from notifications.events.configured import declaration_of
        from notifications.events.topics import registry

        registry.autodiscover()
        configured = conf.get("HUB_TOPICS")
        # The namespace "" matches every name without a colon, so it is asked last.
        for namespace in sorted(configured, reverse=True) if isinstance(configured, dict) else ():
            try:
                registry.register(declaration_of(namespace, configured[namespace]))
            except ValueError:
                continue  # the system check tells
        bridge.install()
