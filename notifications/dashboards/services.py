"""Samples the machine and the hub."""

from __future__ import annotations

from typing import Any

import psutil

from notifications.dashboards import measuring
from notifications.dashboards.measuring import Measurement
from notifications.events import publish

SYSTEM = "dashboard:system"
SAMPLE = "system.sample"


def sample_system() -> dict[str, Any]:
    """Publish a sample to `dashboard:system`; returns its data. Raises LogUnavailable.

    cpu and memory are percent, load is that of the last minute, published, delivered and tasks are per second
    since the sample before; the first one has nothing to compare with, and says 0.
    """
    data = data_of(*measuring.taken())
    publish(SYSTEM, SAMPLE, data, key="system")
    return data


def data_of(now: Measurement, before: Measurement | None) -> dict[str, Any]:
    """The data of a sample, from its measurement and the one before."""
    seconds = 0.0 if before is None else now.time - before.time
    before = before or now
    return {
        "cpu": round(measuring.cpu_percent(now, before), 1),
        "memory": round(psutil.virtual_memory().percent, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "connections": now.connections,
        "published": round(measuring.rate(now.published, before.published, seconds), 2),
        "delivered": round(sum(node.rate for node in now.nodes.values()), 2),
        "tasks": round(measuring.rate(now.tasks, before.tasks, seconds), 2),
    }
