"""What is staged and not sent: pending rows, which a relay numbers, and rows that were set aside."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple

import msgspec
from django.db import transaction
from django.db.models import Count, F, Min
from django.utils import timezone

from notifications.events.event import decode
from notifications.events.exceptions import UnknownTopic
from notifications.events.logs.numbering import (
    MAX_ERROR_LENGTH,
    Reason,
    content,
    database,
    locked_head,
    number_and_announce,
    set_aside,
)
from notifications.events.models import SetAsideEvent, StoredEvent
from notifications.events.text import storable
from notifications.events.topics import resolve

logger = logging.getLogger(__name__)

BATCH = 500


class Pending(NamedTuple):
    """Committed rows of a topic that have no offset yet: the key of the oldest, and their number."""

    oldest: int
    number: int


def pending() -> dict[str, Pending]:
    """What waits for its offset, by topic."""
    rows = StoredEvent.objects.filter(offset__isnull=True).values_list("topic")
    return {topic: Pending(oldest, number) for topic, oldest, number in rows.annotate(Min("pk"), Count("pk"))}


class Relayed(NamedTuple):
    """What a relay did: the number of published events, and the topics where it could do nothing."""

    published: int
    undeclared: set[str]
    failed: set[str]


def relay_topics(names: Iterable[str]) -> Relayed:
    """Number and announce what is pending on some topics, each by itself: where one fails, the next has its turn.

    A topic that another relay or a publisher numbers at the moment is passed over. Raises the database's error when
    its connection is lost.
    """
    relayed, undeclared, failed = 0, set(), set()
    for name in names:
        try:
            relayed += len(number_and_announce(name, wait=False))
        except UnknownTopic:
            undeclared.add(name)
        except Exception:
            if _is_lost():
                raise
            logger.exception("the relay could not publish what is pending on %s", name)
            failed.add(name)
    return Relayed(relayed, undeclared, failed)


def _is_lost() -> bool:
    """Whether the connection to the database is, so that no other topic would fare better."""
    connection = transaction.get_connection(database())
    return connection.connection is None or not connection.is_usable()


def relay() -> int:
    """Number and announce what is pending at this moment; returns how many events that were."""
    return relay_topics(pending()).published


def set_aside_undeclared(name: str) -> int:
    """Set aside what is pending on a topic that nothing declares; returns how many events that were."""
    count = 0
    while True:
        with transaction.atomic(using=database()):
            locked_head(name)
            waiting = StoredEvent.objects.filter(topic=name, offset__isnull=True).order_by("pk")
            pks = list(waiting.values_list("pk", flat=True)[:BATCH])
            if not pks:
                return count
            set_aside(pks, Reason.UNDECLARED, f"no declaration matches {name!r}")
            count += len(pks)


def take_back() -> int:
    """Publish what was set aside because nothing declared its topic, where this process declares it.

    Returns how many events were published. During a deploy, processes of the release before may have set them aside.
    """
    found = SetAsideEvent.objects.filter(reason=Reason.UNDECLARED)
    names = found.order_by("topic").values_list("topic", flat=True).distinct()
    published = 0
    for name in [name for name in names if _is_declared(name)]:
        pks = list(found.filter(topic=name).order_by("pk").values_list("pk", flat=True))
        try:
            for start in range(0, len(pks), BATCH):
                published += retry(pks[start : start + BATCH]).published
        except Exception:
            if _is_lost():
                raise
            logger.exception("what was set aside of %s could not be taken back", name)
    return published


class Retried(NamedTuple):
    """How many events that were set aside are published now, and how many are not."""

    published: int
    others: int


def retry(pks: Collection[int]) -> Retried:
    """Try to send events again that were set aside, those of a topic in the order in which they were staged.

    They come after what their topics have published since. Those that cannot be sent stay set aside, with the
    attempt counted; a version that is not the newest any more is dropped.
    """
    staged: list[int] = []
    for name in list(SetAsideEvent.objects.filter(pk__in=pks).order_by().values_list("topic", flat=True).distinct()):
        staged += _stage_again(name, pks)
    published = StoredEvent.objects.filter(pk__in=staged).count()
    return Retried(published, len(pks) - published)


def _stage_again(name: str, pks: Collection[int]) -> list[int]:
    with transaction.atomic(using=database()):
        chosen = SetAsideEvent.objects.select_for_update().filter(pk__in=pks, topic=name)
        good: list[SetAsideEvent] = []
        for row in chosen.order_by("pk"):
            if trouble := _trouble(row):
                reason, error = trouble
                SetAsideEvent.objects.filter(pk=row.pk).update(
                    reason=reason,
                    error=storable(error)[:MAX_ERROR_LENGTH],
                    attempts=F("attempts") + 1,
                    tried_at=timezone.now(),
                )
            else:
                good.append(row)
        rows = StoredEvent.objects.bulk_create([StoredEvent(**content(row)) for row in good], batch_size=200)
        SetAsideEvent.objects.filter(pk__in=[row.pk for row in good]).delete()
        if rows:
            transaction.on_commit(partial(number_and_announce, name), using=database(), robust=True)
    return [row.pk for row in rows]


def _trouble(row: SetAsideEvent) -> tuple[str, str] | None:
    """Why an event cannot be sent now, as far as that can be told without trying."""
    if not _is_declared(row.topic):
        return Reason.UNDECLARED, f"no declaration matches {row.topic!r}"
    try:
        decode(row.encoded, offset=0, epoch="")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return Reason.UNREADABLE, str(error)
    return None


def discard(pks: Collection[int]) -> int:
    """Delete events that were set aside, for good; returns how many."""
    return SetAsideEvent.objects.filter(pk__in=pks).delete()[0]


def _is_declared(name: str) -> bool:
    try:
        resolve(name)
    except UnknownTopic:
        return False
    return True
