"""What was published, for tests: events that reached a log, and those that wait for a commit.

Under pytest-django's `db` fixture the surrounding transaction never commits, so what a test published is read
from the callbacks that wait on the connection; a rollback takes them away, as it takes the events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction

from notifications.events.event import EncodedEvent, Event
from notifications.events.logs.base import Draft

_recorders: list[list[Event]] = []


class PublishAfterCommit:
    """The `on_commit` callback that appends drafts to a log that is not part of the transaction."""

    def __init__(self, drafts: Sequence[Draft], append: Callable[[Sequence[Draft]], Any]) -> None:
        self.drafts = drafts
        self._append = append
        # By which Django logs a robust callback that failed; without it the line itself raises, out of the commit.
        self.__qualname__ = type(self).__qualname__

    def __call__(self) -> None:
        self._append(self.drafts)


def recorded(event: EncodedEvent) -> None:
    """Note an event that reached its log; costs nothing when no test records."""
    for recorder in _recorders:
        recorder.append(event.decoded())


def start_recording() -> list[Event]:
    """A list that receives every event published by this process from now on."""
    recorder: list[Event] = []
    _recorders.append(recorder)
    return recorder


def stop_recording(recorder: list[Event]) -> None:
    """End what `start_recording()` began."""
    _recorders[:] = [known for known in _recorders if known is not recorder]


def waiting_for_commit() -> list[Event]:
    """The events that this thread's open transaction will publish if it commits, in order."""
    callbacks = [entry[1] for entry in transaction.get_connection().run_on_commit]
    drafts = [draft for callback in callbacks for draft in getattr(callback, "drafts", ())]
    return [draft.event.decoded() for draft in drafts]
