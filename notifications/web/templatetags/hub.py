"""Template tags that put the browser kit into any site's page: `{% load hub %}{% hub_script %}`."""

from __future__ import annotations

import json
from typing import Any

from django import template
from django.conf import settings
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.shortcuts import resolve_url
from django.templatetags.static import static
from django.utils.html import format_html, json_script
from django.utils.safestring import SafeString, mark_safe

from notifications.web.conf import connection_address
from notifications.web.cursors import cursors_of
from notifications.web.state import cursor_state

register = template.Library()


@register.simple_tag(takes_context=True)
def hub_script(context: template.Context) -> SafeString:
    """The hub's script, its configuration, and the import map by which `import { hub } from "hub"` finds it.

    Prints the cursors of the page's view as well (`with_cursors()`). Stands in the page's head, before any other
    module script.
    """
    request: HttpRequest | None = context.get("request")
    nonce = getattr(request, "csp_nonce", "")
    attribute = format_html(' nonce="{}"', nonce) if nonce else ""
    address = static("hub/hub.js")
    return format_html(
        '<script type="importmap"{nonce}>{imports}</script>{config}{cursors}'
        '<script type="module" src="{address}"{nonce}></script>',
        nonce=attribute,
        imports=_script_json({"imports": {"hub": address}}),
        config=json_script(_config(request), "hub-config"),
        cursors=_cursors(request) if cursors_of(request) else "",
        address=address,
    )


@register.simple_tag(takes_context=True)
def hub_cursors(context: template.Context) -> SafeString:
    """The cursors of the page's view (`with_cursors()`) alone, as the JSON script `#hub-cursors`.

    For pages with another client than the kit, which has them from `{% hub_script %}`.
    """
    return _cursors(context.get("request"))


@register.simple_tag
def hub_state(state: Any) -> SafeString:
    """The state of a component, as the JSON script that it reads; stands inside the component's element."""
    return json_script(state)


def _cursors(request: HttpRequest | None) -> SafeString:
    printed = {topic: None if cursor is None else cursor_state(cursor) for topic, cursor in cursors_of(request).items()}
    return json_script(printed, "hub-cursors")


def _config(request: HttpRequest | None) -> dict[str, object]:
    config: dict[str, object] = {
        "connection": connection_address(),
        "login": resolve_url(settings.LOGIN_URL),
        "user": None,
    }
    user = getattr(request, "user", None)
    if request is not None and user is not None and user.is_authenticated:
        config["user"] = {"id": str(user.pk), "name": user.get_username(), "staff": user.is_staff}
        # Not for visitors: their pages post nothing, and a token would make each of them private to a cookie.
        config["csrf"] = get_token(request)
    return config


def _script_json(value: object) -> SafeString:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(value).replace("<", "\\u003C").replace(">", "\\u003E").replace("&", "\\u0026")
    return mark_safe(text)  # noqa: S308 - escaped in the line above
