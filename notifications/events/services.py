"""Publishing: the only way an event comes into being."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from django.db import transaction

from notifications.events import metrics
from notifications.events.event import EncodedEvent, Event, Sender, new_event
from notifications.events.exceptions import InEventLoop, InvalidEvent, LogUnavailable, NothingKept
from notifications.events.logs import Appended, Done, Draft, log_for
from notifications.events.recording import PublishAfterCommit, recorded
from notifications.events.retention import Kind
from notifications.events.threads import running_loop
from notifications.events.topics import ResolvedTopic, namespace_of, resolve

MAX_VERSION = 2**63 - 1


class Publication(NamedTuple):
    """What `publish()` takes, for `publish_many()`."""

    topic: str
    type: str
    data: Any = None
    key: str | None = None
    sender: Sender | None = None
    idempotency_key: str | None = None
    exclude: str | None = None
    tags: Mapping[str, str] | None = None
    version: int = 0
    version_epoch: str = ""


def publish(
    topic: str,
    type: str,
    data: Any = None,
    *,
    key: str | None = None,
    sender: Sender | None = None,
    idempotency_key: str | None = None,
    exclude: str | None = None,
    tags: Mapping[str, str] | None = None,
    version: int = 0,
    version_epoch: str = "",
    keep: bool = True,
    immediately: bool = False,
) -> Event:
    """Publish an event from synchronous code: a view, a signal handler, a Celery task, a command.

    Inside a database transaction the event becomes visible after the commit, or never; the returned event then
    has the offset None. Outside of one it has been appended and announced when this returns, and has its offset.
    `immediately` publishes to a topic that is not durable without waiting for the commit; on a durable topic it
    changes nothing, as its rows belong to the transaction.

    `key` names what the event is about, for topics that conflate. `idempotency_key` (per topic, remembered for
    `HUB_IDEMPOTENCY_SECONDS`) makes a repetition return the first event instead of publishing again. `exclude`
    is the id of a client that must not get its own event back. `tags` are texts by which subscribers filter. A
    `version` above 0, on a topic that keeps events, says how new the state in `data` is: when the topic has accepted
    this version or a later one of the same `version_epoch`, the event is dropped, and what returns is at the topic's
    position. Without `keep` a window topic does not keep the event: it is for those alone who are connected.

    Raises UnknownTopic, InvalidEvent (EventTooLarge beyond `HUB_MAX_DATA_BYTES`) before anything is written,
    InEventLoop on a thread whose event loop runs, and LogUnavailable when the topic's log cannot be reached.
    """
    _refuse_on_event_loop()
    draft = _draft(topic, type, data, key, sender, idempotency_key, exclude, tags, version, version_epoch, keep)
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
    tags: Mapping[str, str] | None = None,
    version: int = 0,
    version_epoch: str = "",
    keep: bool = True,
) -> Event:
    """Publish an event from an event loop; see `publish()`.

    Django has no transactions on an event loop, so the event has its offset when this returns.
    """
    encoded = await apublish_encoded(
        topic,
        type,
        data,
        key=key,
        sender=sender,
        idempotency_key=idempotency_key,
        exclude=exclude,
        tags=tags,
        version=version,
        version_epoch=version_epoch,
        keep=keep,
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
    tags: Mapping[str, str] | None = None,
    version: int = 0,
    version_epoch: str = "",
    keep: bool = True,
) -> EncodedEvent:
    """Publish as `apublish()` does, for callers that need the position, and not the data that they gave."""
    draft = _draft(topic, type, data, key, sender, idempotency_key, exclude, tags, version, version_epoch, keep)
    try:
        appended = await log_for(draft.topic.retention).aappend([draft])
    except LogUnavailable:
        _count_failures([draft])
        raise
    return _noted(draft, *appended[0])


def publish_soon(topic: ResolvedTopic, data: Any, *, sender: Sender | None, done: Done) -> None:
    """Publish an event of the topic's default type from an event loop, without waiting for its log.

    `done` is called on the loop with an `Appended`, or with the exception (LogUnavailable) because of which there is
    none. Raises InvalidEvent (EventTooLarge beyond `HUB_MAX_DATA_BYTES`) before anything is written.
    """
    draft = _draft(topic.name, topic.declaration.default_type, data, None, sender, None, None, None, 0, "")

    def noted(outcome: Appended | Exception) -> None:
        if isinstance(outcome, Exception):
            _count_failures([draft])
        else:
            _noted(draft, *outcome)
        done(outcome)

    log_for(topic.retention).append_soon(draft, noted)


def remove_history(*, topic: str) -> None:
    """Delete the kept events of a topic, from synchronous code.

    The topic's position goes on, so subscribers that missed some of the events are told that they did. On a durable
    topic this belongs to the caller's transaction; elsewhere it is done at once.

    Raises UnknownTopic, NothingKept, InEventLoop on a thread whose event loop runs, and LogUnavailable.
    """
    _refuse_on_event_loop("remove_history")
    kept = _kept(topic)
    log_for(kept.retention).remove(kept)


async def aremove_history(*, topic: str) -> None:
    """Delete the kept events of a topic from an event loop; see `remove_history()`."""
    kept = _kept(topic)
    await log_for(kept.retention).aremove(kept)


def _kept(name: str) -> ResolvedTopic:
    topic = resolve(name)
    if not topic.retention.kept:
        raise NothingKept(f"{name!r} keeps no events")
    return topic


def _draft(
    name: str,
    type: str,
    data: Any,
    key: str | None,
    sender: Sender | None,
    idempotency_key: str | None,
    exclude: str | None,
    tags: Mapping[str, str] | None,
    version: int,
    version_epoch: str,
    keep: bool = True,
) -> Draft:
    topic = resolve(name)
    event = new_event(topic=topic.name, type=type, data=data, key=key, sender=sender, tags=tags)
    declaration = topic.declaration
    if type in declaration.schemas or declaration.default_schema is not None:
        topic.check_data(type, msgspec.json.decode(event.data))
    if idempotency_key is not None and not (0 < len(idempotency_key) <= 255 and idempotency_key.isprintable()):
        raise InvalidEvent("an idempotency key is text of 1 to 255 printable characters")
    if version:
        _check_version(topic, version, version_epoch)
    if not keep and (version or topic.retention.kind is Kind.DURABLE):
        raise InvalidEvent(f"{topic.name!r} ({topic.retention}) keeps this event: it is durable, or has a version")
    return Draft(topic, event, idempotency_key, exclude, version, version_epoch, keep)


def _check_version(topic: ResolvedTopic, version: int, version_epoch: str) -> None:
    if not topic.retention.kept:
        raise InvalidEvent(f"{topic.name!r} keeps no events, so it does not know which version came last")
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version <= MAX_VERSION:
        raise InvalidEvent(f"a version is a whole number from 1 to {MAX_VERSION}, or 0 for none; not {version!r}")
    if not isinstance(version_epoch, str) or len(version_epoch) > 255 or not version_epoch.isprintable():
        raise InvalidEvent("the epoch of a version is text of at most 255 printable characters")


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


def _refuse_on_event_loop(name: str = "publish") -> None:
    if running_loop() is not None:
        raise InEventLoop(f"{name}() would stop this thread's event loop: use `await a{name}(...)` here")
