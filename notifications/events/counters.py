"""Totals over all processes of the hub, for its own dashboard: events published, tasks done.

In Redis where there is one; otherwise in the memory of the process that owns the memory log.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

from notifications.events import conf, local, redis_clients
from notifications.events.exceptions import LogUnavailable

logger = logging.getLogger(__name__)

REDIS_KEY = "hub:counters"

_lock = threading.Lock()
_totals: Counter[str] = Counter()


def add(name: str, amount: int = 1) -> None:
    """Add to a total of this process's memory; the Redis log counts for itself, inside its one call."""
    with _lock:
        _totals[name] += amount


def add_shared(name: str, amount: int = 1) -> None:
    """Add to a total that all processes share. A count that cannot be stored is logged, never raised."""
    try:
        if conf.get("HUB_REDIS_URL"):
            with redis_clients.translated_errors():
                redis_clients.sync_client().hincrby(REDIS_KEY, name, amount)
        elif local.is_remote():
            local.owner.call("count", name=name, amount=amount)
        else:
            add(name, amount)
    except LogUnavailable as error:
        logger.warning("the counter %s was not increased: %s", name, error)


def totals() -> dict[str, int]:
    """The shared totals by name. Raises LogUnavailable when Redis cannot be reached."""
    if conf.get("HUB_REDIS_URL"):
        with redis_clients.translated_errors():
            stored = redis_clients.sync_client().hgetall(REDIS_KEY)
        return {name.decode(): int(value) for name, value in stored.items()}  # type: ignore[union-attr]
    if local.is_remote():
        remote: dict[str, int] = local.owner.call("totals")
        return remote
    with _lock:
        return dict(_totals)
