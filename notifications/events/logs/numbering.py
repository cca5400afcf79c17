"""Gives committed rows of the durable log their offsets, and announces them.

A short transaction of its own locks the topic's head and numbers, in a second statement, every committed row that has
no offset, in the order of the rows' serial keys. A row that cannot be sent is set aside, so that it blocks no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    router,
    transaction,
)
from django.db.models import Max
from django.utils import timezone

from notifications.events import conf, counters, messenger
from notifications.events.event import EncodedEvent, decode
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import notices
from notifications.events.messages import event_message
from notifications.events.models import LogEpoch, SetAsideEvent, StoredEvent, TopicHead
from notifications.events.text import storable
from notifications.events.topics import ResolvedTopic, resolve

logger = logging.getLogger(__name__)

NUMBERING_ATTEMPTS = 8
#: Rows that one transaction numbers at most: a long backlog does not keep a topic's publishers waiting, nor fill the
#: memory.
BATCH = 1_000

#: How long a topic's publishers in this process wait for one that meets a locked database.
PATIENCE_SECONDS = 5.0
MAX_ERROR_LENGTH = 1_000

Reason = SetAsideEvent.Reason


def database() -> str:
    """The alias of the database that holds the durable log."""
    return router.db_for_write(StoredEvent) or DEFAULT_DB_ALIAS


def current_epoch() -> str:
    """The epoch of the durable topics of this database; begun when there is none."""
    epoch = LogEpoch.objects.order_by("pk").first()
    if epoch is None:
        epoch, _ = LogEpoch.objects.get_or_create(pk=1)
    return epoch.value


# Numbering and announcing of one process go together, so that the announcements of a topic leave in order. Other
# processes may still announce a later offset first; their receivers see the hole and read the log.
_ordering = [threading.Lock() for _ in range(16)]

# When the layer did not take an announcement, the next ones are left to the comparison of positions for so long:
# each would wait as long as Redis is waited for, and the topic's publishers in this process behind it.
SILENT_SECONDS = 1.0
_silent_until: dict[str, float] = {}  # by the Redis that did not answer


def _order_of(name: str) -> threading.Lock:
    if connections[database()].features.has_select_for_update:
        return _ordering[hash(name) % len(_ordering)]
    return _ordering[0]  # one writer at a time: the others wait better here than by polling for the database's lock


def number_and_announce(name: str, *, wait: bool = True) -> dict[int, EncodedEvent]:
    """Give offsets to the committed events of a topic that have none, and announce them.

    Those whose version is not above the topic's last one are deleted instead, and those that cannot be sent are set
    aside. Without `wait` nothing is done where others are numbering at the moment, in this process or in another.
    Returns the others by the primary key of their row. Raises UnknownTopic, and the database's errors.
    """
    topic = resolve(name)
    order = _order_of(name)
    numbered: dict[int, EncodedEvent] = {}
    if not order.acquire(blocking=wait):
        return numbered
    try:
        while True:
            rows, more = _number(name, wait=wait)
            numbered.update({row.pk: row.event for row in rows})
            _announce(topic, rows)
            if not more:
                return numbered
    finally:
        order.release()


class NumberedRow(NamedTuple):
    """A row that has just been given its offset."""

    pk: int
    event: EncodedEvent
    encoded: str
    exclude: str


class Numbered(NamedTuple):
    """The rows that one transaction numbered, and whether it left some for the next."""

    rows: list[NumberedRow]
    more: bool


def _number(name: str, *, wait: bool) -> Numbered:
    one_by_one, began = False, time.monotonic()
    for attempt in range(NUMBERING_ATTEMPTS):
        try:
            return _number_once(name, wait=wait, one_by_one=one_by_one)
        except (OperationalError, InterfaceError):  # a serialization failure, a deadlock, SQLite's lock, a restart
            if attempt == NUMBERING_ATTEMPTS - 1 or time.monotonic() > began + PATIENCE_SECONDS:
                raise
            time.sleep(0.01 * 2**attempt)
        except DatabaseError as error:
            if one_by_one:
                raise
            logger.warning("the pending events of %s are numbered one by one, as together they fail: %s", name, error)
            one_by_one = True
    raise AssertionError("unreachable")


def _number_once(name: str, *, wait: bool, one_by_one: bool) -> Numbered:
    with transaction.atomic(using=database()):
        head = locked_head(name, wait=wait)
        if head is None:
            return Numbered([], more=False)
        # A second statement, because its snapshot must be younger than the lock.
        pending = list(
            StoredEvent.objects.filter(topic=name, offset__isnull=True)
            .order_by("pk")
            .values_list("pk", "encoded", "exclude", "version", "version_epoch")[:BATCH]
        )
        if not pending:
            return Numbered([], more=False)
        if one_by_one:
            _mend(head)
        epoch, dropped = current_epoch(), []
        rows: list[NumberedRow] = []
        offset, last_version = head.offset, (head.version, head.version_epoch)
        for pk, encoded, exclude, version, version_epoch in pending:
            if version and version <= last_version[0] and version_epoch == last_version[1]:
                dropped.append(pk)
                continue
            try:
                event = decode(encoded, offset=offset + 1, epoch=epoch)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                set_aside([pk], Reason.UNREADABLE, str(error))
                continue
            if one_by_one and not _takes(pk, offset + 1):
                continue
            if version:
                last_version = version, version_epoch
            offset += 1
            rows.append(NumberedRow(pk, event, encoded, exclude))
        if dropped:
            StoredEvent.objects.filter(pk__in=dropped).delete()
        if not one_by_one:
            _write_offsets(rows)
        TopicHead.objects.filter(pk=name).update(offset=offset, version=last_version[0], version_epoch=last_version[1])
    return Numbered(rows, more=len(pending) == BATCH)


def locked_head(name: str, *, wait: bool = True) -> TopicHead | None:
    """The head of a topic, made when there is none, and locked until the transaction ends.

    Without `wait`, None while another transaction has it locked.
    """
    heads = TopicHead.objects.select_for_update(skip_locked=not wait).filter(pk=name)
    head = heads.first()
    if head is None and (wait or not TopicHead.objects.filter(pk=name).exists()):
        TopicHead.objects.bulk_create([TopicHead(pk=name)], ignore_conflicts=True)
        head = heads.first()
        if head is None and wait:
            raise OperationalError(f"the head of {name!r} is not visible yet")  # under REPEATABLE READ: again
    return head


def _write_offsets(rows: Sequence[NumberedRow]) -> None:
    if len(rows) == 1:
        StoredEvent.objects.filter(pk=rows[0].pk).update(offset=rows[0].event.offset)
    elif rows:
        StoredEvent.objects.bulk_update(
            [StoredEvent(pk=row.pk, offset=row.event.offset) for row in rows], ["offset"], batch_size=200
        )


def _takes(pk: int, offset: int) -> bool:
    """Write the offset of one row, or set the row aside when the database refuses."""
    try:
        with transaction.atomic(using=database()):
            StoredEvent.objects.filter(pk=pk).update(offset=offset)
    except (OperationalError, InterfaceError):
        raise
    except DatabaseError as error:
        set_aside([pk], Reason.REFUSED, str(error), attempts=2)
        return False
    return True


def _mend(head: TopicHead) -> None:
    """Let a head that is behind its topic's events, as after a partial restore, go on after the newest of them."""
    newest = StoredEvent.objects.filter(topic=head.topic).aggregate(newest=Max("offset"))["newest"] or 0
    head.offset = max(head.offset, newest)


def set_aside(pks: Sequence[int], reason: str, error: str, *, attempts: int = 1) -> None:
    """Take staged rows out of the way of the others, in a transaction that has their topic's head locked.

    They are kept as they are; their idempotency keys go, as what these name was not published.
    """
    now = timezone.now()
    rows = StoredEvent.objects.filter(pk__in=pks, offset__isnull=True).order_by("pk")
    kept = [
        SetAsideEvent(
            **content(row), reason=reason, error=storable(error)[:MAX_ERROR_LENGTH], attempts=attempts, tried_at=now
        )
        for row in rows
    ]
    SetAsideEvent.objects.bulk_create(kept, batch_size=200)
    rows.order_by().delete()
    if kept:
        logger.error("%d events of %s were set aside, as %s: %s", len(kept), kept[0].topic, Reason(reason).label, error)


def content(row: StoredEvent | SetAsideEvent) -> dict[str, Any]:
    """What a staged row and the same event set aside have in common."""
    return {
        name: getattr(row, name) for name in ("topic", "type", "time", "encoded", "exclude", "version", "version_epoch")
    }


def _announce(topic: ResolvedTopic, rows: Sequence[NumberedRow]) -> None:
    if not rows:
        return
    redis_url = conf.get("HUB_REDIS_URL")
    if time.monotonic() < _silent_until.get(redis_url, 0):
        notices.unannounced(topic.name, using=database())
        return
    try:
        for row in rows:
            messenger.announce(topic, row.event, event_message(row.event, row.encoded, row.exclude))
        counters.add_shared("published", len(rows))
    except LogUnavailable as error:
        # They are in the log: every process that serves the topic finds them when it compares positions. The rest
        # is not tried.
        _silent_until[redis_url] = time.monotonic() + SILENT_SECONDS
        logger.warning("events of %s could not all be announced: %s", topic.name, error)
        notices.unannounced(topic.name, using=database())


def announce_newest(name: str) -> None:
    """Announce the newest event of a topic for a process whose announcements nobody took.

    Its receivers find the others in the log, as they are missing between their position and this one. Raises
    UnknownTopic and LogUnavailable.
    """
    topic = resolve(name)
    if time.monotonic() < _silent_until.get(conf.get("HUB_REDIS_URL"), 0):
        return
    newest = StoredEvent.objects.filter(topic=name, offset__isnull=False).order_by("-offset").first()
    if newest is None:
        return
    event = decode(newest.encoded, offset=newest.offset or 0, epoch=current_epoch())
    messenger.announce(topic, event, event_message(event, newest.encoded, newest.exclude))
