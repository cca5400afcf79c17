"""What a topic keeps of its events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Where the kept events of a topic are, and so what they survive."""

    EPHEMERAL = "ephemeral"
    WINDOW = "window"
    DURABLE = "durable"


@dataclass(frozen=True, slots=True)
class Retention:
    """How many events a topic keeps and for how long.

    `size` is a number of events and `seconds` an age; None means no bound of that sort.
    """

    kind: Kind
    size: int | None = None
    seconds: int | None = None

    @property
    def kept(self) -> bool:
        """Whether events can be read again, so that offsets and recovery have a meaning."""
        return self.kind is not Kind.EPHEMERAL

    def __str__(self) -> str:
        bounds = [
            f"{self.size} events" if self.size is not None else "",
            _humanise(self.seconds) if self.seconds is not None else "",
        ]
        return " ".join([self.kind.value, ", ".join(bound for bound in bounds if bound)]).strip()


def _humanise(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def ephemeral() -> Retention:
    """Keep nothing: who is connected receives the event, nobody else ever will."""
    return Retention(Kind.EPHEMERAL)


def window(size: int = 100, seconds: int = 300) -> Retention:
    """Keep the last `size` events for at most `seconds`, in memory or Redis."""
    if size < 1 or seconds < 1:
        raise ValueError("window() needs a size and seconds of at least 1; use ephemeral() to keep nothing")
    return Retention(Kind.WINDOW, size=size, seconds=seconds)


def durable(days: float | None = 30, size: int | None = None) -> Retention:
    """Keep events as rows of the database, published within the caller's transaction.

    Rows older than `days`, or beyond the newest `size`, are removed by the pruning task; None keeps all.
    """
    seconds = None if days is None else round(days * 86_400)
    return Retention(Kind.DURABLE, size=size, seconds=seconds)
