"""One beat acts, however many are started.

Each beat keeps the schedule and tries to hold a lease in the database; only the holder sends what is due. When a
holder dies, another one takes the expired lease over, and sends what fell due meanwhile.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from datetime import timedelta
from typing import Any

from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from django.db import DatabaseError, close_old_connections, connections

from notifications.events import leases
from workers import handover

logger = logging.getLogger(__name__)

LEASE = "beat"
LEASE_SECONDS = 15.0
RENEW_SECONDS = 3.0


def _unique_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class LeasedScheduler(Scheduler):
    """Celery's scheduler in memory, which sends tasks only while it holds the lease."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._leads_until = 0.0
        self._asked_at = float("-inf")
        # What fell due while another beat held the lease: the entry and when, on the monotonic clock.
        self._left_to_holder: dict[str, tuple[float, ScheduleEntry]] = {}
        super().__init__(*args, **kwargs)
        # The embedded beat of a hub that was killed left its lease behind; it is the same beat that comes back, as
        # only one process can own the memory that is its broker.
        embedded = handover.is_embedded() and handover.is_in_memory(self.app)
        self.holder = "embedded" if embedded else _unique_name()

    @property
    def leads(self) -> bool:
        """Whether this beat holds the lease. A holder that cannot renew it stops before it expires for the others."""
        return time.monotonic() < self._leads_until

    def tick(self, *args: Any, **kwargs: Any) -> float:
        self._renew()
        delay: float = super().tick(*args, **kwargs)
        return min(delay, RENEW_SECONDS)

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._asked_at < RENEW_SECONDS:
            return
        led, self._asked_at = self.leads, now
        close_old_connections()
        try:
            acquired = leases.acquire(LEASE, holder=self.holder, ttl=timedelta(seconds=LEASE_SECONDS))
        except DatabaseError as error:
            logger.warning("the lease of the beat cannot be renewed: %s", error)
            return
        # Counted from before the question, so that this beat's idea of its lease ends before the database's.
        self._leads_until = now + LEASE_SECONDS if acquired else 0.0
        if acquired and not led:
            logger.info("this beat acts from now on")
            self._send_what_was_left()
        elif led and not acquired:
            logger.warning("another beat has taken over")

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        if self.leads:
            self._send(entry, producer)
        else:
            self._left_to_holder[str(entry.name)] = (time.monotonic(), entry)

    def _send_what_was_left(self) -> None:
        """Send what fell due since the previous holder may have died; some of it may have been sent twice."""
        oldest = time.monotonic() - LEASE_SECONDS - RENEW_SECONDS
        left, self._left_to_holder = self._left_to_holder, {}
        for due, entry in left.values():
            if due >= oldest:
                self._send(entry, self.producer)

    def _send(self, entry: ScheduleEntry, producer: Any) -> None:
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            # In one line, where Celery's own scheduler prints two tracebacks a second while the broker is away.
            logger.warning("%s", error)

    def close(self) -> None:
        """Give the lease back, so that another beat takes over at once."""
        super().close()
        self._leads_until = 0.0
        try:
            leases.release(LEASE, holder=self.holder)
        except DatabaseError as error:
            logger.warning("the lease of the beat could not be given back; it expires by itself: %s", error)
        finally:
            connections.close_all()

    @property
    def info(self) -> str:
        return f"    . lease -> {self.holder}"
