"""Leases: one of several processes does something, and another one takes over when it dies.

All times are the database's, so that the clocks of the processes' machines do not matter.
"""

from __future__ import annotations

from datetime import timedelta

from django.db.models import DateTimeField, DurationField, ExpressionWrapper, Q, Value
from django.db.models.functions import Now

from notifications.events.models import Lease


def acquire(name: str, *, holder: str, ttl: timedelta) -> bool:
    """Take or renew the lease `name` for `holder`; False when another holder's has not expired yet."""
    expires_at = ExpressionWrapper(Now() + Value(ttl, DurationField()), DateTimeField())
    # One conditional statement: of two that ask at once, the second finds the first one's lease.
    free = Lease.objects.filter(Q(holder=holder) | Q(expires_at__lt=Now()), pk=name)
    if free.update(holder=holder, expires_at=expires_at):
        return True
    _, created = Lease.objects.get_or_create(pk=name, defaults={"holder": holder, "expires_at": expires_at})
    return created


def release(name: str, *, holder: str) -> None:
    """Give the lease `name` back, if `holder` has it."""
    Lease.objects.filter(pk=name, holder=holder).delete()
