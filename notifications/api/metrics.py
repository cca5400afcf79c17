"""Prometheus counters of the API."""

from __future__ import annotations

from prometheus_client import Counter

requests = Counter("hub_api_requests_total", "Requests to the HTTP API; code 0 is success", ["method", "code"])
