"""Prometheus counters of publishing. Labels are namespaces, never topics: there may be millions of those."""

from __future__ import annotations

from prometheus_client import Counter

published = Counter("hub_published_total", "Events appended by this process", ["namespace"])
publish_failures = Counter("hub_publish_failures_total", "Events that a log did not take", ["namespace"])
