"""Publishing: the only way an event comes into being."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.db import transaction

from notifications.events import metrics
from notifications.events.event import Event, Sender, new_event, plain
from notifications.events.exceptions import InEventLoop, InvalidEvent, LogUnavailable
from notifications.events.logs import Appended, Draft, log_for
from notifications.events.recording import PublishAfterCommit, recorded
from notifications.events.retention import Kind
from notifications.events.topics import namespace_of, resolve


class Publication(NamedTuple):
    """What `publish()` takes, for `publish_many()`."""

    topic: str
    type: str
    data: Any = None
    key: str | None = None
    sender: Sender | None = None
    idempotency_key: str | None = None
    exclude: str | None = None


def publish(
    topic: str,
    type: str,
    data: Any = None,
    *,
    key: str | None = None,
    sender: Sender | None = None,
    idempotency_key: str | None = None,
    exclude: str | None = None,
    immediately: bool = False,
) -> Event:
    """Publish an event from synchronous code: a view, a signal handler, a Celery task, a command.

    Inside a database transaction the event becomes visible after the commit, or never; the returned event then
    has the offset None. Outside of one it has been appended and announced when this returns, and has its offset.
    `immediately` publishes to a topic that is not durable without waiting for the commit; on a durable topic it
    changes nothing, as its rows belong to the transaction.

    `key` names what the event is about, for topics that conflate. `idempotency_key` (per topic, remembered for
    `HUB_IDEMPOTENCY_SECONDS`) makes a repetition return the first event instead of publishing again. `exclude`
    is the id of a client that must not get its own event back.

    Raises UnknownTopic, InvalidEvent (EventTooLarge beyond `HUB_MAX_DATA_BYTES`) before anything is written,
    InEventLoop on a thread whose event loop runs, and LogUnavailable when the topic's log cannot be reached.
    """
    publication = Publication(topic, type, data, key, sender, idempotency_key, exclude)
    return publish_many([publication], immediately=immediately)[0]


def publish_many(publications: Iterable[Publication], *, immediately: bool = False) -> list[Event]:
    """Publish several events in order, with one round trip per log; see `publish()`.

    All are checked before the first is written.
    """
    _refuse_on_event_loop()
    drafts = [_draft(publication) for publication in publications]
    events: dict[int, Event] = {}
    for durable in (True, False):
        chosen = [(index, draft) for index, draft in enumerate(drafts) if _is_durable(draft) is durable]
        if not chosen:
            continue
        appended = _append([draft for _, draft in chosen], wait_for_commit=not durable and not immediately)
        events.update(zip([index for index, _ in chosen], appended, strict=True))
    return [events[index] for index in range(len(drafts))]


def _append(drafts: Sequence[Draft], *, wait_for_commit: bool) -> list[Event]:
    if wait_for_commit and transaction.get_connection().in_atomic_block:
        transaction.on_commit(PublishAfterCommit(drafts, _append_now), robust=True)
        return [draft.event.decoded() for draft in drafts]
    return _append_now(drafts)


def _append_now(drafts: Sequence[Draft]) -> list[Event]:
    with _failures_counted(drafts):
        appended = log_for(drafts[0].topic.retention).append(drafts)
    return _results(drafts, appended)


async def apublish(
    topic: str,
    type: str,
    data: Any = None,
    *,
    key: str | None = None,
    sender: Sender | None = None,
    idempotency_key: str | None = None,
    exclude: str | None = None,
) -> Event:
    """Publish an event from an event loop; see `publish()`.

    Django has no transactions on an event loop, so the event has its offset when this returns.
    """
    draft = _draft(Publication(topic, type, data, key, sender, idempotency_key, exclude))
    with _failures_counted([draft]):
        appended = await log_for(draft.topic.retention).aappend([draft])
    return _results([draft], appended)[0]


def _draft(publication: Publication) -> Draft:
    topic = resolve(publication.topic)
    event = new_event(
        topic=topic.name,
        type=publication.type,
        data=publication.data,
        key=publication.key,
        sender=publication.sender,
    )
    if publication.type in topic.declaration.schemas:
        topic.check_data(publication.type, plain(publication.data))
    key = publication.idempotency_key
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        raise InvalidEvent("an idempotency key is text of 1 to 255 printable characters")
    return Draft(topic, event, key, publication.exclude)


def _is_durable(draft: Draft) -> bool:
    return draft.topic.retention.kind is Kind.DURABLE


def _results(drafts: Sequence[Draft], appended: Sequence[Appended]) -> list[Event]:
    events = []
    for draft, (event, repeated) in zip(drafts, appended, strict=True):
        decoded = event.decoded()
        if not repeated and not _is_durable(draft):  # the durable log records for itself, after the commit
            recorded(event)
        events.append(decoded)
        metrics.published.labels(namespace_of(draft.topic.name)).inc(not repeated)
    return events


@contextmanager
def _failures_counted(drafts: Sequence[Draft]) -> Iterator[None]:
    try:
        yield
    except LogUnavailable:
        for draft in drafts:
            metrics.publish_failures.labels(namespace_of(draft.topic.name)).inc()
        raise


def _refuse_on_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InEventLoop("publish() would stop this thread's event loop: use `await apublish(...)` here")
