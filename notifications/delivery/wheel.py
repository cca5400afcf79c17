"""A timer wheel: when to look at which session next, without a timer per session."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notifications.delivery.session import Session


class Wheel:
    """Sessions by the second in which they are due. The last time given to a session counts."""

    def __init__(self) -> None:
        self._slots: dict[int, set[Session]] = {}
        self._due: dict[Session, int] = {}
        self._turned = int(time.monotonic())

    def add(self, session: Session, seconds: float) -> None:
        """Have the session returned by `due()` in so many seconds, instead of when it was to be before."""
        self.discard(session)
        slot = max(self._turned + 1, math.ceil(time.monotonic() + seconds))
        self._due[session] = slot
        self._slots.setdefault(slot, set()).add(session)

    def discard(self, session: Session) -> None:
        """Forget a session."""
        slot = self._due.pop(session, None)
        if slot is not None:
            sessions = self._slots[slot]
            sessions.discard(session)
            if not sessions:
                del self._slots[slot]

    def seconds_left(self, session: Session) -> float | None:
        """In how many seconds a session is due; None when it is not among these."""
        slot = self._due.get(session)
        return None if slot is None else slot - time.monotonic()

    def due(self) -> list[Session]:
        """The sessions whose time has come since the last call."""
        now, found = int(time.monotonic()), []
        for slot in range(self._turned + 1, now + 1):
            for session in self._slots.pop(slot, ()):
                del self._due[session]
                found.append(session)
        self._turned = now
        return found
