"""Leases: one holder at a time, on both databases."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now

from notifications.events import leases
from notifications.events.models import Lease

pytestmark = pytest.mark.django_db(transaction=True)

TTL = timedelta(seconds=15)


def expire() -> None:
    Lease.objects.update(expires_at=Now() - timedelta(milliseconds=1))


def test_a_lease_is_held_by_one_and_renewed_by_it_alone() -> None:
    assert leases.acquire("beat", holder="a", ttl=TTL)
    assert not leases.acquire("beat", holder="b", ttl=TTL)
    assert leases.acquire("beat", holder="a", ttl=TTL)
    assert leases.acquire("another", holder="b", ttl=TTL)


def test_an_expired_lease_is_taken_over() -> None:
    leases.acquire("beat", holder="a", ttl=TTL)
    expire()

    assert leases.acquire("beat", holder="b", ttl=TTL)
    assert not leases.acquire("beat", holder="a", ttl=TTL)


def test_a_lease_lasts_as_long_as_asked() -> None:
    leases.acquire("beat", holder="a", ttl=TTL)

    assert not Lease.objects.filter(expires_at__lt=Now() + timedelta(seconds=13)).exists()
    assert not Lease.objects.filter(expires_at__gt=Now() + timedelta(seconds=16)).exists()


def test_only_the_holder_gives_a_lease_back() -> None:
    leases.acquire("beat", holder="a", ttl=TTL)

    leases.release("beat", holder="b")
    assert not leases.acquire("beat", holder="b", ttl=TTL)
    leases.release("beat", holder="a")
    assert leases.acquire("beat", holder="b", ttl=TTL)


@pytest.mark.parametrize("before", ["nothing", "an expired lease"])
def test_of_many_that_ask_at_once_one_gets_it(before: str) -> None:
    if before != "nothing":
        leases.acquire("beat", holder="dead", ttl=TTL)
        expire()
    start, won = threading.Barrier(8), []

    def ask(holder: str) -> None:
        start.wait()
        if leases.acquire("beat", holder=holder, ttl=TTL):
            won.append(holder)
        connection.close()

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert won == [Lease.objects.get().holder]
