"""Publishing: the only way an event comes into being."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from django.db import transaction

from notifications.events import metrics
from notifications.events.event import EncodedEvent, Event, Sender, new_event
from notifications.events.exceptions import InEventLoop, InvalidEvent, LogUnavailable
from notifications.events.logs import Draft, log_for
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
    _refuse_on_event_loop()
    draft = _draft(topic, type, data, key, sender, idempotency_key, exclude)
    return _append([draft], wait_for_commit=not immediately and not _is_durable(draft))[0]


def publish_many(publications: Iterable[Publication], *, immediately: bool = False) -> list[Event]:
    """Publish several events in order, with one round trip per log; see `publish()`.

    All are checked before the first is written.
    """
    _refuse_on_event_loop()
    drafts = [_draft(*publication) for publication in publications]
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
    return [event.decoded() for event in _append_now(drafts)]


def _append_now(drafts: Sequence[Draft]) -> list[EncodedEvent]:
    try:
        appended = log_for(drafts[0].topic.retention).append(drafts)
    except LogUnavailable:
        _count_failures(drafts)
        raise
    return [_noted(draft, *outcome) for draft, outcome in zip(drafts, appended, strict=True)]


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
    encoded = await apublish_encoded(
        topic, type, data, key=key, sender=sender, idempotency_key=idempotency_key, exclude=exclude
    )
    return encoded.decoded()


async def apublish_encoded(
    topic: str,
    type: str,
    data: Any = None,
    *,
    key: str | None = None,
    sender: Sender | None = None,
    idempotency_key: str | None = None,
    exclude: str | None = None,
) -> EncodedEvent:
    """Publish as `apublish()` does, for callers that need the position, and not the data that they gave."""
    draft = _draft(topic, type, data, key, sender, idempotency_key, exclude)
    try:
        appended = await log_for(draft.topic.retention).aappend([draft])
    except LogUnavailable:
        _count_failures([draft])
        raise
    return _noted(draft, *appended[0])


def _draft(
    name: str,
    type: str,
    data: Any,
    key: str | None,
    sender: Sender | None,
    idempotency_key: str | None,
    exclude: str | None,
) -> Draft:
    topic = resolve(name)
    event = new_event(topic=topic.name, type=type, data=data, key=key, sender=sender)
    if type in topic.declaration.schemas:
        topic.check_data(type, msgspec.json.decode(event.data))
    if idempotency_key is not None and not (0 < len(idempotency_key) <= 255 and idempotency_key.isprintable()):
        raise InvalidEvent("an idempotency key is text of 1 to 255 printable characters")
    return Draft(topic, event, idempotency_key, exclude)


def _is_durable(draft: Draft) -> bool:
    return draft.topic.retention.kind is Kind.DURABLE


def _noted(draft: Draft, event: EncodedEvent, repeated: bool) -> EncodedEvent:
    """The event as its log took it, counted, and told to tests that record."""
    if not repeated and not _is_durable(draft):  # the durable log records for itself, after the commit
        recorded(event)
    metrics.published_in(namespace_of(draft.topic.name)).inc(not repeated)
    return event


def _count_failures(drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        metrics.publish_failures.labels(namespace_of(draft.topic.name)).inc()


def _refuse_on_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InEventLoop("publish() would stop this thread's event loop: use `await apublish(...)` here")
