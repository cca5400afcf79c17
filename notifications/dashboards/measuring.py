"""What one sample measures, and the rates between two of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

import msgspec
import psutil

from notifications.delivery.registry import Node, registry
from notifications.events import conf, counters, redis_clients

# Of a machine whose last sample is older, or of which there is none, the CPU is watched for a moment instead.
CPU_SECONDS = 0.1


class Deliveries(msgspec.Struct, frozen=True):
    """What a server process had delivered when it renewed its lease, and the rate since the lease before."""

    total: int
    renewed_at: float
    rate: float = 0.0


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Readings of the counters at one moment; `busy` and `elapsed` are seconds of all CPUs of `machine`."""

    time: float
    machine: str
    busy: float
    elapsed: float
    connections: int
    published: int
    tasks: int
    nodes: dict[str, Deliveries]


def measure(previous: Measurement | None) -> Measurement:
    """Read all counters; `previous` is what the rates of the server processes go on from."""
    totals = counters.totals()
    nodes = registry().nodes()
    cpu = psutil.cpu_times()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0)
    # Linux counts the time of guests in user and nice as well.
    elapsed = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
    return Measurement(
        time=time.time(),
        machine=socket.gethostname(),
        busy=elapsed - idle,
        elapsed=elapsed,
        connections=sum(node.sessions for node in nodes),
        published=totals.get("published", 0),
        tasks=totals.get("tasks_done", 0),
        nodes=deliveries(nodes, {} if previous is None else previous.nodes),
    )


def deliveries(nodes: Iterable[Node], previous: dict[str, Deliveries]) -> dict[str, Deliveries]:
    """The deliveries of each process, with the rate between its last two leases.

    A process that is new has no rate yet, and one whose lease was not renewed since keeps its rate, as samples and
    leases do not keep step.
    """
    return {node.id: _deliveries_of(node, previous.get(node.id)) for node in nodes}


def _deliveries_of(node: Node, before: Deliveries | None) -> Deliveries:
    if before is None:
        return Deliveries(node.delivered, node.renewed_at)
    if node.renewed_at <= before.renewed_at:
        return before
    rate = max(0, node.delivered - before.total) / (node.renewed_at - before.renewed_at)
    return Deliveries(node.delivered, node.renewed_at, rate)


def rate(now: float, before: float, seconds: float) -> float:
    """How much a total grew per second; nothing when it began anew, or no time has passed."""
    return max(0.0, now - before) / seconds if seconds > 0 else 0.0


def cpu_percent(now: Measurement, previous: Measurement | None) -> float:
    """How busy the machine's CPUs were since the previous measurement, in percent."""
    if previous is not None and previous.machine == now.machine and now.elapsed > previous.elapsed:
        return min(100.0, rate(now.busy, previous.busy, now.elapsed - previous.elapsed) * 100)
    return psutil.cpu_percent(interval=CPU_SECONDS)


_REDIS_KEY = "hub:dashboard:measurement"
# A rate over a longer time would not be one of now.
KEPT_SECONDS = 60

_of_this_process: Measurement | None = None


def taken() -> tuple[Measurement, Measurement | None]:
    """Measure; returns the measurement and the one before, whichever process took it.

    Raises LogUnavailable when the counters that processes share cannot be reached.
    """
    before = _kept()
    if before is not None and not 0 < time.time() - before.time < KEPT_SECONDS:
        before = None
    now = measure(before)
    _keep(now)
    return now, before


def _kept() -> Measurement | None:
    if not conf.get("HUB_REDIS_URL"):
        return _of_this_process
    with redis_clients.translated_errors():
        kept = redis_clients.sync_client().get(_REDIS_KEY)
    return msgspec.json.decode(kept, type=Measurement) if isinstance(kept, bytes) else None


def _keep(measurement: Measurement) -> None:
    global _of_this_process
    _of_this_process = measurement
    if conf.get("HUB_REDIS_URL"):
        with redis_clients.translated_errors():
            redis_clients.sync_client().set(_REDIS_KEY, msgspec.json.encode(measurement), ex=KEPT_SECONDS)
