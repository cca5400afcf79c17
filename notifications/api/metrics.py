"""Prometheus counters of the API."""

from __future__ import annotations

import functools

from prometheus_client import Counter

requests = Counter("hub_api_requests_total", "Requests to the HTTP API; code 0 is success", ["method", "code"])


@functools.cache
def answered(method: str, code: int) -> Counter:
    """The counter of a method's answers with a code; looking it up takes a lock and costs more than counting."""
    return requests.labels(method, str(code))
