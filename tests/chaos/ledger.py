"""What publishers were promised: a file of JSON lines that any number of processes append to."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec


class Outcome(enum.IntEnum):
    """What became of an event, as far as its publisher knows. What is higher is known later, or better."""

    #: The call had begun; of a publisher that was killed nothing more is known.
    ATTEMPTED = 0
    #: The call failed or timed out, or the commit did: it may have been published, or not.
    UNKNOWN = 1
    #: Its transaction never got to its commit.
    ROLLED_BACK = 2
    #: The call returned, or the commit did.
    PROMISED = 3


class Entry(msgspec.Struct, frozen=True):
    """One line. `at` is on the system's monotonic clock, which all processes share."""

    outcome: Outcome
    topic: str
    #: Who publishes; the events of one publisher on one topic are in the order of their numbers where `ordered`.
    series: str
    number: int
    at: float
    ordered: bool = True
    offset: int = 0
    epoch: str = ""
    pid: int = 0

    @property
    def key(self) -> str:
        return key_of(self.series, self.number)


def key_of(series: str, number: int) -> str:
    """What identifies an event in its data, and as its idempotency key."""
    return f"{series}-{number}"


class Ledger:
    """Appends to a file of entries; each line is there as a whole even if the process is killed the next moment."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(
        self,
        outcome: Outcome,
        topic: str,
        series: str,
        number: int,
        *,
        ordered: bool = True,
        offset: int | None = None,
        epoch: str = "",
    ) -> None:
        """Append one line."""
        entry = Entry(outcome, topic, series, number, time.monotonic(), ordered, offset or 0, epoch, os.getpid())
        os.write(self._file, msgspec.json.encode(entry) + b"\n")

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class Promise(msgspec.Struct):
    """All that the ledger has about one event."""

    topic: str
    series: str
    number: int
    outcome: Outcome
    attempted_at: float
    ordered: bool = True
    offset: int = 0
    epoch: str = ""

    @property
    def key(self) -> str:
        return key_of(self.series, self.number)


_decoder = msgspec.json.Decoder(Entry)


def entries(path: Path) -> list[Entry]:
    """The lines that are there by now."""
    if not path.exists():
        return []
    return [_decoder.decode(line) for line in path.read_bytes().split(b"\n")[:-1]]


def promises(found: Iterable[Entry]) -> dict[tuple[str, str], Promise]:
    """What became of each event, by its topic and key."""
    events: dict[tuple[str, str], Promise] = {}
    for entry in found:
        known = events.get((entry.topic, entry.key))
        if known is None:
            known = events[entry.topic, entry.key] = Promise(
                entry.topic, entry.series, entry.number, entry.outcome, entry.at, entry.ordered
            )
        known.outcome = max(known.outcome, entry.outcome)
        known.attempted_at = min(known.attempted_at, entry.at)
        if entry.offset:
            known.offset, known.epoch = entry.offset, entry.epoch
    return events
