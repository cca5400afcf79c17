"""Closes the sessions of a process that stops, so that no client notices more than that it has to connect again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from notifications.delivery import codes

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.switchboard import Switchboard

# Few sessions are no storm when they come back: they are closed within so much for each, however long the window is.
GAP_SECONDS = 0.05
TURN_SECONDS = 0.01
#: How long commands may take that still run when the window is over.
ANSWER_SECONDS = 2.0


async def drain_over(switchboard: Switchboard, seconds: float) -> None:
    """Take no new sessions, and close those there are one by one within `seconds`, each when it was answered.

    Until then a session is served as ever. Returns when all are closed, ANSWER_SECONDS after the time at the latest.
    """
    switchboard.draining = True
    loop, sessions = switchboard.loop, list(switchboard.sessions.values())
    window = min(seconds, len(sessions) * GAP_SECONDS)
    begun, told = loop.time(), 0
    while told < len(sessions):
        elapsed = loop.time() - begun
        due = len(sessions) if elapsed >= window else int(len(sessions) * elapsed / window) + 1
        for session in sessions[told:due]:
            session.run_for_server(_close(session))
        told = due
        await asyncio.sleep(TURN_SECONDS)
    # Some may have been about to open when the process was told to stop.
    for session in set(switchboard.sessions.values()).difference(sessions):
        session.run_for_server(_close(session))
    end = begun + seconds + ANSWER_SECONDS
    while switchboard.sessions and loop.time() < end:  # noqa: ASYNC110 - a condition of the loop itself
        await asyncio.sleep(TURN_SECONDS)
    switchboard.drain()


async def _close(session: Session) -> None:
    """The last command of a session: it is closed when its publications that are under way were answered, too."""
    while session.beside and session.closed_with is None:  # noqa: ASYNC110 - a condition of the loop itself
        await asyncio.sleep(TURN_SECONDS)
    session.switchboard.writer.hand_out()  # what has arrived for it goes first
    session.disconnect(codes.SHUTDOWN)
