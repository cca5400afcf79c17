from __future__ import annotations

from django.http import HttpRequest


def hub(request: HttpRequest) -> dict[str, object]:
    """Template context of every page: `csp_nonce`, empty where the policy's middleware is not installed."""
    return {"csp_nonce": getattr(request, "csp_nonce", "")}
