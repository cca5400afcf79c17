from __future__ import annotations

from django.http import HttpRequest

from notifications.alerts.selectors import alert_count_state


def open_alerts(request: HttpRequest) -> dict[str, object]:
    """Template context for signed-in users: `hub_alerts_open`, how many alerts fire unacknowledged."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    return {"hub_alerts_open": alert_count_state()}
