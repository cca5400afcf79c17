"""The hub's URLs, and a view that does nothing but answer JSON, past the middleware of the hub's pages."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from hub.urls import urlpatterns as hub_urlpatterns


@csrf_exempt
async def bare(request: HttpRequest) -> JsonResponse:
    """The least that an asynchronous view can do."""
    return JsonResponse({"result": {}})


urlpatterns = [path("bare/", bare), *hub_urlpatterns]
