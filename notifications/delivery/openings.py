"""Begins and ends to serve topics: joins their groups and learns their positions, for many in one round trip."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from notifications.events import messenger
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import log_for

if TYPE_CHECKING:
    from notifications.delivery.live_topic import LiveTopic

logger = logging.getLogger(__name__)


class Openings:
    """Opens and closes the topics of one kind of retention, one round after the other.

    While a round is on its way the next one fills: a storm of reconnects, each with a topic of its own, shares the
    round trips, and a lone topic waits for nothing. Rounds also keep a quick close and open of one topic in order.
    """

    def __init__(self, channel: str, *, is_wanted: Callable[[str], bool]) -> None:
        self._channel = channel
        self._is_wanted = is_wanted
        self._opening: list[LiveTopic] = []
        self._closing: list[LiveTopic] = []
        self._running: asyncio.Task[None] | None = None

    def open(self, live: LiveTopic) -> None:
        """Open a topic with the next round; it is told of the outcome."""
        self._opening.append(live)
        self._start()

    def close(self, live: LiveTopic) -> None:
        """Leave a topic's group with the next round, unless it is wanted again by then."""
        self._closing.append(live)
        self._start()

    def stop(self) -> None:
        """Give up what is under way; those who wait are told."""
        if self._running is not None:
            self._running.cancel()
        opening, self._opening = self._opening, []
        _fail(opening, _stopped())

    def _start(self) -> None:
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._opening or self._closing:
                closing, self._closing = self._closing, []
                groups = [live.group for live in closing if not self._is_wanted(live.topic.name)]
                if groups:
                    await discard_from_groups(groups, self._channel)
                opening, self._opening = self._opening, []
                if opening:
                    await self._open(opening)
        finally:
            self._running = None

    async def _open(self, opening: Sequence[LiveTopic]) -> None:
        try:
            await add_to_groups([live.group for live in opening], self._channel)
            retention = opening[0].topic.retention
            positions = await log_for(retention).aopen([live.topic for live in opening]) if retention.kept else {}
        except asyncio.CancelledError:
            _fail(opening, _stopped())
            raise
        except Exception as error:  # noqa: BLE001 - every layer has its own, and those who wait have to know
            _fail(opening, error)
            return
        for live in opening:
            live.opened_at(positions.get(live.topic.name))


def _fail(opening: Sequence[LiveTopic], error: Exception) -> None:
    for live in opening:
        live.failed(error)


def _stopped() -> LogUnavailable:
    return LogUnavailable("this process does not serve topics any more")


async def add_to_groups(groups: Sequence[str], channel: str) -> None:
    """Make a channel a member of groups. Raises LogUnavailable, or what the layer has of its own."""
    layer = messenger.layer()
    if hasattr(layer, "group_add_many"):
        await layer.group_add_many(groups, channel)
        return
    for group in groups:
        await layer.group_add(group, channel)


async def discard_from_groups(groups: Sequence[str], channel: str) -> None:
    """Make a channel leave groups; a layer that does not answer loses it by itself, or is met again at its return."""
    layer = messenger.layer()
    try:
        if hasattr(layer, "group_discard_many"):
            await layer.group_discard_many(groups, channel)
            return
        for group in groups:
            await layer.group_discard(group, channel)
    except Exception as error:  # noqa: BLE001 - every layer has its own, and the topics of the round are still to be opened
        logger.info("%d groups could not be left: %s", len(groups), error)
