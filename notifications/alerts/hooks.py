"""Where monitoring systems deliver: `POST /hooks/alertmanager` with an API key as bearer token.

Alertmanager repeats a delivery after a 5xx and gives up after anything else that is not 2xx. So what went wrong
here is a 503, whatever it was, and a 2xx leaves only after the commit. Too many deliveries are a 503 as well, not a
429: what was answered so would never come again.
"""

from __future__ import annotations

import logging

from django.db import Error as DatabaseTrouble
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from notifications.alerts import alertmanager as protocol
from notifications.alerts import services
from notifications.alerts.topics import TOPIC
from notifications.delivery import keys, limits
from notifications.delivery.identity import Identity
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.web.problems import problem

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_048_576
RETRY_AFTER_SECONDS = 5


@csrf_exempt
def alertmanager(request: HttpRequest) -> HttpResponse:
    """Take Alertmanager's webhook payload."""
    if request.method != "POST":
        return problem(405, "Alertmanager's notifications are taken with POST.", headers={"Allow": "POST"})
    try:
        return _refusal(request) or _received(request)
    except (DatabaseTrouble, LogUnavailable):
        logger.exception("a notification of Alertmanager could not be stored; it was asked to send it again")
        return problem(
            503,
            "The hub cannot store alerts at the moment. Send them again.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )


def _refusal(request: HttpRequest) -> HttpResponse | None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    patterns = keys.patterns_of(key.strip()) if scheme.lower() == "bearer" else None
    if patterns is None:
        return problem(
            401,
            "Send an API key of this hub as `Authorization: Bearer …`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if not Identity(grants=patterns).granted(TOPIC):
        return problem(403, f"This API key is not allowed on the topic {TOPIC}.")
    rate = conf.get("HUB_MAX_API_REQUESTS_PER_SECOND")
    if rate and (seconds := limits.wait_for_sync(scope="api", subject=limits.subject_of_key(key.strip()), rate=rate)):
        return problem(
            503,
            f"This API key may be used {rate} times a second. Send the alerts again later.",
            headers={"Retry-After": limits.retry_after(seconds)},
        )
    return None


def _received(request: HttpRequest) -> HttpResponse:
    body = request.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        return problem(413, f"A notification has at most {MAX_BODY_BYTES} bytes; set max_alerts in Alertmanager.")
    try:
        received = services.receive_alertmanager(payload=protocol.decode(body))
    except protocol.InvalidPayload as error:
        return problem(400, f"This is not an Alertmanager payload: {error}")
    return JsonResponse({"received": len(received)})


urlpatterns = [
    path("alertmanager", alertmanager, name="alertmanager-hook"),
    path("alertmanager/", alertmanager),
]
