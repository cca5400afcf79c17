from __future__ import annotations

from django.apps import AppConfig


class WebConfig(AppConfig):
    """The browser kit: components, styles, the base template, template tags and the content security policy."""

    name = "notifications.web"
    label = "hub_web"
    verbose_name = "Browser kit"
