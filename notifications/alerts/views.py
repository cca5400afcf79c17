"""The page of alerts, and the acknowledgement."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

from notifications.alerts import selectors, services
from notifications.alerts.models import Alert
from notifications.web.problems import problem, signed_in


@require_safe
@login_required
def alerts(request: HttpRequest) -> HttpResponse:
    """What fires, who looks after it, and what is over."""
    return render(request, "alerts/alerts.html", {"state": selectors.alerts_page_state()})


@require_POST
@signed_in
def acknowledge(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Note that the user looks after an alert; answers with the alert as it is now."""
    alert = Alert.objects.filter(pk=alert_id).first()
    if alert is None:
        return problem(404, "There is no such alert.")
    return JsonResponse(selectors.alert_state(services.acknowledge(alert=alert, user=request.user)))
