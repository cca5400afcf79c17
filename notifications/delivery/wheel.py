"""A timer wheel: when to look at which session next, without a timer per session."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notifications.delivery.session import Session


class Wheel:
    """Sessions by the second in which they are due. The last time given to a session counts."""

    def __init__(self) -> None:
        self._slots: defaultdict[int, list[Session]] = defaultdict(list)
        self._due: dict[str, int] = {}
        self._turned = int(time.monotonic())

    def add(self, session: Session, seconds: float) -> None:
        """Have the session returned by `due()` in so many seconds."""
        slot = math.ceil(time.monotonic() + seconds)
        self._due[session.id] = slot
        self._slots[slot].append(session)

    def due(self) -> list[Session]:
        """The sessions whose time has come since the last call."""
        now, found = int(time.monotonic()), []
        for slot in range(self._turned + 1, now + 1):
            for session in self._slots.pop(slot, ()):
                if self._due.get(session.id) == slot:
                    del self._due[session.id]
                    found.append(session)
        self._turned = now
        return found
