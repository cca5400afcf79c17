"""Prometheus metrics of publishing. Labels are namespaces, never topics: there may be millions of those."""

from __future__ import annotations

import functools

from prometheus_client import Counter, Gauge

published = Counter("hub_published_total", "Events appended by this process", ["namespace"])
publish_failures = Counter("hub_publish_failures_total", "Events that a log did not take", ["namespace"])
layer_messages_lost = Counter("hub_layer_messages_lost_total", "Messages that were not read in time, and dropped")
#: By `state`, "pending" or "set_aside"; the same rows in every process that runs a relay.
outbox_events = Gauge("hub_outbox_events", "Committed events of durable topics that were not sent yet", ["state"])


@functools.lru_cache(maxsize=4_096)
def published_in(namespace: str) -> Counter:
    """The counter of a namespace; looking it up takes a lock and costs more than counting."""
    return published.labels(namespace)
