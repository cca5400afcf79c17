"""Prometheus metrics of one server process. Labels are codes and namespaces, never topics."""

from __future__ import annotations

import functools

from prometheus_client import Counter, Gauge

connections = Gauge("hub_connections", "Open sessions", ["protocol"])
subscriptions = Gauge("hub_subscriptions", "Subscriptions of open sessions", ["namespace"])
delivered = Counter("hub_delivered_total", "Events handed to sessions", ["namespace"])
sent_bytes = Counter("hub_sent_bytes_total", "Bytes written to transports, frame headers included")
received_messages = Counter("hub_received_messages_total", "Messages from clients", ["protocol"])
conflated = Counter("hub_conflated_total", "Events that a newer one with their key replaced", ["namespace"])
gaps_repaired = Counter("hub_gaps_repaired_total", "Events that the layer lost and the log had", ["namespace"])
resets = Counter("hub_resets_total", "Times a topic's log no longer reached back to its subscribers", ["namespace"])
disconnects = Counter("hub_disconnects_total", "Sessions closed by the hub", ["code"])
errors = Counter("hub_command_errors_total", "Commands answered with an error", ["code"])

# Looking up a labelled metric takes a lock and costs more than counting: those of the hot paths are looked up once.


@functools.cache
def connections_over(protocol: str) -> Gauge:
    """The gauge of the open sessions of a protocol."""
    return connections.labels(protocol)


@functools.cache
def received_over(protocol: str) -> Counter:
    """The counter of messages from the clients of a protocol."""
    return received_messages.labels(protocol)


@functools.lru_cache(maxsize=4_096)
def subscriptions_in(namespace: str) -> Gauge:
    """The gauge of subscriptions in a namespace."""
    return subscriptions.labels(namespace)


@functools.lru_cache(maxsize=4_096)
def delivered_in(namespace: str) -> Counter:
    """The counter of the deliveries of a namespace."""
    return delivered.labels(namespace)
