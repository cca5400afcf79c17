"""The dashboard of the machine and the hub."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET


@require_GET
@login_required
def dashboard(request: HttpRequest) -> HttpResponse:
    """Charts that fill themselves from the window of `dashboard:system`."""
    return render(request, "dashboards/dashboard.html")
