"""Prometheus metrics of one server process. Labels are codes and namespaces, never topics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

connections = Gauge("hub_connections", "Open sessions", ["protocol"])
subscriptions = Gauge("hub_subscriptions", "Subscriptions of open sessions", ["namespace"])
delivered = Counter("hub_delivered_total", "Events handed to sessions", ["namespace"])
sent_bytes = Counter("hub_sent_bytes_total", "Bytes written to transports, frame headers included")
received_messages = Counter("hub_received_messages_total", "Messages from clients", ["protocol"])
gaps_repaired = Counter("hub_gaps_repaired_total", "Events that the layer lost and the log had", ["namespace"])
resets = Counter("hub_resets_total", "Times a topic's log no longer reached back to its subscribers", ["namespace"])
disconnects = Counter("hub_disconnects_total", "Sessions closed by the hub", ["code"])
errors = Counter("hub_command_errors_total", "Commands answered with an error", ["code"])
