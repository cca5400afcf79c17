"""The durable log: rows of the database, staged within the publisher's transaction.

Staging and numbering are two things. Within the caller's transaction a row is inserted without an offset; after
the commit it is numbered (see `numbering`). Numbers taken inside the callers' transactions would become visible out
of order, or leave holes where one rolls back. A row whose process died in between is found by a relay (see `outbox`).
"""

from __future__ import annotations

import functools
import logging
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import msgspec
from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.db.models import Q
from django.utils import timezone

from notifications.events import conf
from notifications.events.event import Cursor, EncodedEvent, at_position, decode
from notifications.events.exceptions import LogUnavailable, UnknownTopic
from notifications.events.logs import notices
from notifications.events.logs.base import Appended, Draft, Log, Page, Read
from notifications.events.logs.epochs import begin_epoch_unless_at
from notifications.events.logs.numbering import current_epoch, database, number_and_announce
from notifications.events.models import IdempotencyKey, StoredEvent, TopicHead
from notifications.events.recording import recorded
from notifications.events.threads import in_log_thread
from notifications.events.topics import ResolvedTopic, resolve

logger = logging.getLogger(__name__)

TOPICS_IN_ONE_QUERY = 100


class Staged(NamedTuple):
    """A row in the caller's transaction, or the earlier one that its idempotency key names."""

    row: StoredEvent
    repeated: bool


class NumberAfterCommit:
    """The `on_commit` callback that numbers and announces what a transaction staged on some topics.

    `staged` are the primary keys of the rows, each with its draft; `notified` says that the transaction has a notice
    for the relays. `numbered` becomes their events by these keys, and `dropped` the keys of rows whose version was
    not above the topic's last one.
    """

    def __init__(self, staged: Sequence[tuple[int, Draft]], *, notified: bool = False) -> None:
        self.staged = staged
        self.notified = notified
        self.numbered: dict[int, EncodedEvent] = {}
        self.dropped: set[int] = set()
        # By which Django logs a robust callback that failed; without it the line itself raises, out of the commit.
        self.__qualname__ = type(self).__qualname__

    @property
    def drafts(self) -> list[Draft]:
        return [draft for _, draft in self.staged]

    def __call__(self) -> None:
        if self.notified:
            notices.sent()
        for name in dict.fromkeys(draft.topic.name for draft in self.drafts):
            try:
                self.numbered.update(number_and_announce(name))
            except Exception:
                # Committed it is: what failed here is the relay's to mend, and the next topic's turn comes.
                logger.exception("events of %s are left to the relay", name)
        # Whoever numbers a row drops it: that may have been another publisher, together with its own rows.
        versioned = {pk for pk, draft in self.staged if draft.version and pk not in self.numbered}
        if versioned:
            self.dropped = versioned.difference(
                StoredEvent.objects.filter(pk__in=versioned).values_list("pk", flat=True)
            )
        for pk, draft in self.staged:
            if pk not in self.dropped:
                recorded(draft.event)

    def complete(self) -> None:
        """Fill in those of the rows that another publisher numbered together with its own.

        Raises nothing when the database is lost at this moment: the rows are committed, so that they must not be
        published again, and only their offsets are not known here.
        """
        missing = [pk for pk, _ in self.staged if pk not in self.numbered and pk not in self.dropped]
        if not missing:
            return
        try:
            epoch = current_epoch()
            for row in StoredEvent.objects.filter(pk__in=missing, offset__isnull=False):
                self.numbered[row.pk] = decode(row.encoded, offset=row.offset or 0, epoch=epoch)
        except (OperationalError, InterfaceError) as error:
            logger.warning("%d events were published without knowing their offsets: %s", len(missing), error)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise LogUnavailable where the database cannot be reached.

    Inside the caller's transaction the database's own error is raised: it has broken that transaction, and must not
    be taken for an event that can be done without.
    """
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if transaction.get_connection(database()).in_atomic_block:
            raise
        raise LogUnavailable(f"the database did not take the call: {error}") from error


class DatabaseLog(Log):
    """Keeps events as rows; what is published outside of a transaction is numbered before `append` returns."""

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        using = database()
        with translated_errors(), transaction.atomic(using=using):
            staged = self._stage(drafts)
            numbering = NumberAfterCommit(
                [(row.pk, draft) for draft, (row, repeated) in zip(drafts, staged, strict=True) if not repeated],
                notified=notices.send_with_transaction(using),
            )
            # Robust, because the rows are committed: a failure here is not the caller's to mend.
            transaction.on_commit(numbering, using=using, robust=True)
        if not transaction.get_connection(using).in_atomic_block:
            numbering.complete()
        appended = []
        for draft, (row, repeated) in zip(drafts, staged, strict=True):
            event = numbering.numbered.get(row.pk)
            if row.pk in numbering.dropped:
                position = self.positions([draft.topic])[draft.topic.name]
                event, repeated = at_position(draft.event, offset=position.offset, epoch=position.epoch), True
            elif event is None:
                event = _known(row) if repeated else draft.event
            appended.append(Appended(event, repeated))
        return appended

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        return await in_log_thread(self.append, drafts)

    def _stage(self, drafts: Sequence[Draft]) -> list[Staged]:
        if any(draft.idempotency_key is not None for draft in drafts):
            return [self._stage_once(draft) for draft in drafts]
        rows = StoredEvent.objects.bulk_create([_row(draft) for draft in drafts], batch_size=200)
        return [Staged(row, repeated=False) for row in rows]

    def _stage_once(self, draft: Draft) -> Staged:
        """Stage an event unless its idempotency key was used before."""
        row = _row(draft)
        if draft.idempotency_key is None:
            row.save()
            return Staged(row, repeated=False)
        now = timezone.now()
        keys = IdempotencyKey.objects.filter(topic=draft.topic.name, key=draft.idempotency_key)
        live = keys.filter(expires_at__gt=now).select_related("event")
        if known := live.first():
            return Staged(known.event, repeated=True)
        expires_at = now + timedelta(seconds=conf.get("HUB_IDEMPOTENCY_SECONDS"))
        try:
            with transaction.atomic(using=database()):
                keys.delete()
                row.save()
                IdempotencyKey.objects.create(
                    topic=draft.topic.name, key=draft.idempotency_key, event=row, expires_at=expires_at
                )
        except IntegrityError:
            # Another transaction used the key meanwhile; the insert waited for its commit, so it is visible now.
            known = live.first()
            if known is None:
                raise
            return Staged(known.event, repeated=True)
        return Staged(row, repeated=False)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        with translated_errors():
            return self._read(topic, since=since, limit=limit, reverse=reverse)

    def _read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool) -> Page:
        # The position first: whatever is numbered after it is left out, and announced by its publisher.
        head = TopicHead.objects.filter(pk=topic.name).first()
        position = Cursor(head.offset if head else 0, current_epoch())
        if limit == 0:
            return Page([], position)
        rows = StoredEvent.objects.filter(topic=topic.name, offset__lte=position.offset)
        if since is not None:
            rows = rows.filter(offset__lt=since.offset) if reverse else rows.filter(offset__gt=since.offset)
        rows = rows.order_by("-offset" if reverse else "offset")
        fields = rows.values_list("offset", "encoded")[slice(limit)]
        return Page(
            [decode(encoded, offset=offset or 0, epoch=position.epoch) for offset, encoded in fields],
            position,
        )

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page:
        return await in_log_thread(self.read, topic, since=since, limit=limit, reverse=reverse)

    async def aread_many(self, reads: Sequence[Read]) -> list[Page]:
        return await in_log_thread(self._read_many, reads)

    def _read_many(self, reads: Sequence[Read]) -> list[Page]:
        # The positions first, as in `_read()`.
        positions = self.positions([read.topic for read in reads])
        found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        wanted = [read for read in reads if read.since.offset < positions[read.topic.name].offset]
        with translated_errors():
            for start in range(0, len(wanted), TOPICS_IN_ONE_QUERY):
                conditions = [
                    Q(
                        topic=read.topic.name,
                        offset__gt=read.since.offset,
                        offset__lte=min(read.since.offset + read.limit, positions[read.topic.name].offset),
                    )
                    for read in wanted[start : start + TOPICS_IN_ONE_QUERY]
                ]
                rows = StoredEvent.objects.filter(functools.reduce(operator.or_, conditions)).order_by("offset")
                for name, offset, encoded in rows.values_list("topic", "offset", "encoded"):
                    found[name].append((offset or 0, encoded))
        return [self._page_of(read, positions[read.topic.name], found[read.topic.name]) for read in reads]

    def _page_of(self, read: Read, position: Cursor, rows: Iterable[tuple[int, str]]) -> Page:
        last = min(read.since.offset + read.limit, position.offset)
        events = [
            decode(encoded, offset=offset, epoch=position.epoch)
            for offset, encoded in rows
            if read.since.offset < offset <= last  # a topic may have been asked for twice
        ]
        return Page(events, position)

    async def abegin_epoch(self, topic: ResolvedTopic, *, lost: Cursor) -> Cursor:
        return await in_log_thread(self._begin_epoch, topic.name, lost)

    def _begin_epoch(self, topic: str, lost: Cursor) -> Cursor:
        with translated_errors():
            return begin_epoch_unless_at(topic, lost)

    async def apositions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        return await in_log_thread(self.positions, list(topics))

    def positions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        names = [topic.name for topic in topics]
        with translated_errors():
            offsets = dict(TopicHead.objects.filter(pk__in=names).values_list("topic", "offset"))
            epoch = current_epoch()
        return {name: Cursor(offsets.get(name, 0), epoch) for name in names}

    def remove(self, topic: ResolvedTopic) -> None:
        # Idempotency keys go with their events. What waits for its offset is not there yet for anybody.
        with translated_errors():
            StoredEvent.objects.filter(topic=topic.name, offset__isnull=False).delete()

    async def aremove(self, topic: ResolvedTopic) -> None:
        await in_log_thread(self.remove, topic)


def _known(row: StoredEvent) -> EncodedEvent:
    """The event of a row that an idempotency key named, without an offset where it has none yet."""
    offset = row.offset
    if offset is None:  # when it was read; it may have been numbered since
        offset = StoredEvent.objects.filter(pk=row.pk).values_list("offset", flat=True).first()
    event = decode(row.encoded, offset=offset or 0, epoch=current_epoch())
    return event if offset is not None else msgspec.structs.replace(event, offset=None, epoch="")


def _row(draft: Draft) -> StoredEvent:
    return StoredEvent(
        topic=draft.topic.name,
        type=draft.event.type,
        time=draft.event.time or timezone.now(),
        encoded=draft.encoded,
        exclude=draft.exclude or "",
        version=draft.version,
        version_epoch=draft.version_epoch,
    )


def prune() -> int:
    """Delete events that their topic's retention no longer keeps, and forgotten idempotency keys.

    Returns the number of deleted events.
    """
    forget_idempotency_keys()
    return sum(prune_topic(head) for head in TopicHead.objects.all())


def forget_idempotency_keys() -> None:
    """Delete idempotency keys that are past their time."""
    IdempotencyKey.objects.filter(expires_at__lt=timezone.now()).delete()


def prune_topic(head: TopicHead) -> int:
    """Delete the events of one topic beyond its retention; returns how many."""
    try:
        retention = resolve(head.topic).retention
    except UnknownTopic:
        return 0
    rows = StoredEvent.objects.filter(topic=head.topic, offset__isnull=False)
    deleted = 0
    if retention.seconds is not None:
        oldest = timezone.now() - timedelta(seconds=retention.seconds)
        deleted += rows.filter(time__lt=oldest).delete()[0]
    if retention.size is not None:
        deleted += rows.filter(offset__lte=head.offset - retention.size).delete()[0]
    return deleted
