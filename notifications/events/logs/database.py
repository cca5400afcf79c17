"""The durable log: rows of the database, staged within the publisher's transaction.

Staging and numbering are two things. Within the caller's transaction a row is inserted without an offset; after
the commit a short transaction of its own locks the topic's head and numbers every committed row that has none.
Numbers taken inside the callers' transactions would become visible out of order, or leave holes where one rolls
back. A row whose process died between commit and numbering is found by `relay()`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, IntegrityError, InterfaceError, OperationalError, router, transaction
from django.db.models import F
from django.utils import timezone

from notifications.events import conf, counters, messenger
from notifications.events.event import Cursor, EncodedEvent, at_position, decode
from notifications.events.exceptions import LogUnavailable, UnknownTopic
from notifications.events.logs.base import Appended, Draft, Log, Page
from notifications.events.messages import event_message
from notifications.events.models import IdempotencyKey, LogEpoch, StoredEvent, TopicHead
from notifications.events.recording import recorded
from notifications.events.threads import in_log_thread
from notifications.events.topics import ResolvedTopic, resolve

logger = logging.getLogger(__name__)

NUMBERING_ATTEMPTS = 8


def database() -> str:
    """The alias of the database that holds the durable log."""
    return router.db_for_write(StoredEvent) or DEFAULT_DB_ALIAS


class Staged(NamedTuple):
    """A row in the caller's transaction, or the earlier one that its idempotency key names."""

    row: StoredEvent
    repeated: bool


class NumberAfterCommit:
    """The `on_commit` callback that numbers and announces what a transaction staged on some topics.

    `staged` are the primary keys of the rows, each with its draft. `numbered` becomes their events by these keys, and
    `dropped` the keys of rows whose version was not above the topic's last one.
    """

    def __init__(self, staged: Sequence[tuple[int, Draft]]) -> None:
        self.staged = staged
        self.numbered: dict[int, EncodedEvent] = {}
        self.dropped: set[int] = set()

    @property
    def drafts(self) -> list[Draft]:
        return [draft for _, draft in self.staged]

    def __call__(self) -> None:
        for name in dict.fromkeys(draft.topic.name for draft in self.drafts):
            self.numbered.update(number_and_announce(name))
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
        """Fill in those of the rows that another publisher numbered together with its own."""
        missing = [pk for pk, _ in self.staged if pk not in self.numbered and pk not in self.dropped]
        if missing:
            epoch = current_epoch()
            for row in StoredEvent.objects.filter(pk__in=missing, offset__isnull=False):
                self.numbered[row.pk] = decode(row.encoded, offset=row.offset or 0, epoch=epoch)


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
                [(row.pk, draft) for draft, (row, repeated) in zip(drafts, staged, strict=True) if not repeated]
            )
            # Robust, because the rows are committed: a failure here is the relay's to mend, not the caller's.
            transaction.on_commit(numbering, using=using, robust=True)
        if not transaction.get_connection(using).in_atomic_block:
            with translated_errors():
                numbering.complete()
        appended = []
        for draft, (row, repeated) in zip(drafts, staged, strict=True):
            event = numbering.numbered.get(row.pk, draft.event)
            if repeated:
                event = decode(row.encoded, offset=row.offset or 0, epoch=current_epoch())
            elif row.pk in numbering.dropped:
                position = self.positions([draft.topic])[draft.topic.name]
                event, repeated = at_position(event, offset=position.offset, epoch=position.epoch), True
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


def current_epoch() -> str:
    """The epoch of the durable topics of this database; begun when there is none."""
    epoch = LogEpoch.objects.order_by("pk").first()
    if epoch is None:
        epoch, _ = LogEpoch.objects.get_or_create(pk=1)
    return epoch.value


# Numbering and announcing of one process go together, so that its announcements leave in order. Other processes
# may still announce a later offset first; their receivers see the hole and read the log.
_announcing = threading.Lock()

# When the layer did not take an announcement, the next ones are left to the comparison of positions for so long:
# each would wait as long as Redis is waited for, and all publishers of the process behind it.
SILENT_SECONDS = 1.0
_silent_until: dict[str, float] = {}  # by the Redis that did not answer


def number_and_announce(name: str) -> dict[int, EncodedEvent]:
    """Give offsets to the committed events of a topic that have none, and announce them.

    Those whose version is not above the topic's last one are deleted instead. Returns the others by the primary key
    of their row.
    """
    try:
        topic = resolve(name)
    except UnknownTopic:
        logger.warning("events of %r are staged, but nothing declares that topic any more", name)
        return {}
    with _announcing:
        rows = _number(name)
        events = {row.pk: decode(row.encoded, offset=row.offset, epoch=row.epoch) for row in rows}
        _announce(topic, [(events[row.pk], row) for row in rows])
    return events


class NumberedRow(NamedTuple):
    """A row that has just been given its offset."""

    pk: int
    offset: int
    epoch: str
    encoded: str
    exclude: str


def _number(name: str) -> list[NumberedRow]:
    for attempt in range(NUMBERING_ATTEMPTS):
        try:
            return _number_once(name)
        except OperationalError:  # a serialization failure, a deadlock, SQLite's lock
            if attempt == NUMBERING_ATTEMPTS - 1:
                raise
            time.sleep(0.01 * 2**attempt)
    raise AssertionError("unreachable")


def _number_once(name: str) -> list[NumberedRow]:
    using = database()
    TopicHead.objects.get_or_create(pk=name)
    with transaction.atomic(using=using):
        head = TopicHead.objects.select_for_update().get(pk=name)
        # A second statement, because its snapshot must be younger than the lock.
        pending = list(
            StoredEvent.objects.filter(topic=name, offset__isnull=True)
            .order_by("pk")
            .values_list("pk", "encoded", "exclude", "version", "version_epoch")
        )
        if not pending:
            return []
        epoch, dropped = current_epoch(), []
        rows: list[NumberedRow] = []
        last_version = head.version, head.version_epoch
        for pk, encoded, exclude, version, version_epoch in pending:
            if version:
                if version <= last_version[0] and version_epoch == last_version[1]:
                    dropped.append(pk)
                    continue
                last_version = version, version_epoch
            rows.append(NumberedRow(pk, head.offset + len(rows) + 1, epoch, encoded, exclude))
        if dropped:
            StoredEvent.objects.filter(pk__in=dropped).delete()
        if len(rows) == 1:
            StoredEvent.objects.filter(pk=rows[0].pk).update(offset=rows[0].offset)
        else:
            StoredEvent.objects.bulk_update(
                [StoredEvent(pk=row.pk, offset=row.offset) for row in rows], ["offset"], batch_size=200
            )
        TopicHead.objects.filter(pk=name).update(
            offset=F("offset") + len(rows), version=last_version[0], version_epoch=last_version[1]
        )
    return rows


def _announce(topic: ResolvedTopic, numbered: Sequence[tuple[EncodedEvent, NumberedRow]]) -> None:
    redis_url = conf.get("HUB_REDIS_URL")
    if not numbered or time.monotonic() < _silent_until.get(redis_url, 0):
        return
    try:
        for event, row in numbered:
            messenger.announce(topic, event, event_message(event, row.encoded, row.exclude))
        counters.add_shared("published", len(numbered))
    except LogUnavailable as error:
        # They are in the log: every process that serves the topic finds them when it compares positions. The rest
        # is not tried.
        _silent_until[redis_url] = time.monotonic() + SILENT_SECONDS
        logger.warning("events of %s could not all be announced: %s", topic.name, error)


def relay(*, older_than: timedelta = timedelta(seconds=1)) -> int:
    """Number and announce events whose process died after its commit; returns how many."""
    staged = StoredEvent.objects.filter(offset__isnull=True, time__lt=timezone.now() - older_than)
    return sum(len(number_and_announce(name)) for name in list(staged.values_list("topic", flat=True).distinct()))


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
