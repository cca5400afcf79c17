"""Whether what this process publishes comes back to it through the channel layer, and when it last did.

A layer that takes messages need not deliver them: a connection to Redis may be half open, or a membership lost. Only
a message that made the whole way shows that events do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from notifications.delivery.openings import add_to_groups
from notifications.events.messages import control_message

if TYPE_CHECKING:
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

SEND_SECONDS = 1.0
LATE_SECONDS = 3.0


class Canary:
    """Sends a message to the process itself each second, by the way of events: to a group, and back from it.

    The group is of this process alone: in the control group, each of a hundred processes would get those of all. It
    is joined over the connection that the other groups are joined over, and lost with them.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        self.group = f"hub-canary-{switchboard.node}"
        self._switchboard = switchboard
        # When the newest that came back was sent, on the loop's clock.
        self._sent_at = float("-inf")
        # The first is waited for, so that a process that has just started is not taken for deaf.
        self._first = asyncio.Event()
        self._failing = False

    async def late(self) -> bool:
        """Whether the newest that came back was sent more than `LATE_SECONDS` ago; waits for the first one."""
        await self._first.wait()
        return self._is_late()

    def _is_late(self) -> bool:
        return self._switchboard.loop.time() - self._sent_at > LATE_SECONDS

    def returned(self, sent_at: float) -> None:
        """One came back."""
        self._sent_at = max(self._sent_at, sent_at)
        self._first.set()

    async def run(self) -> None:
        """Send one after the other, until cancelled."""
        joined = False
        while True:
            try:
                if not joined:
                    await add_to_groups([self.group], self._switchboard.channel)
                    joined = True
                await self._send()
                self._failing = False
            except Exception as error:  # noqa: BLE001 - every layer has its own, and the next may come through
                if not self._failing:
                    self._failing = True
                    logger.warning("the channel layer takes no messages: %s", error)
            await asyncio.sleep(SEND_SECONDS)

    async def _send(self) -> None:
        switchboard = self._switchboard
        await switchboard.send_to_group(self.group, control_message("canary", sent_at=switchboard.loop.time()))
        if self._first.is_set() and self._is_late():
            # The layer takes messages and delivers none: one that keeps memberships in Redis may have lost them.
            await switchboard.rejoin()
