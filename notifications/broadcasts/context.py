from __future__ import annotations

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest

from notifications.broadcasts.selectors import banners_state


def banners(request: HttpRequest) -> dict[str, object]:
    """Template context of every page: `hub_banners`, the broadcasts that its reader has not dismissed."""
    return {"hub_banners": banners_state(user=getattr(request, "user", None) or AnonymousUser())}
