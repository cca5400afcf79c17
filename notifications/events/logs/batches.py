"""Joins what many coroutines append at the same time into one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from notifications.events.logs.base import Appended, Draft

MAX_BATCH = 512

AppendBatch = Callable[[Sequence[Draft]], Awaitable[list[Appended | Exception]]]


class Batches:
    """Appends drafts of one event loop in the order in which they were added, one batch at a time.

    While a batch is on its way the next one fills, so that a lone event waits for nothing, and many share the cost
    of a round trip. `append` returns an outcome for each draft, or raises for all of them.
    """

    def __init__(self, append: AppendBatch) -> None:
        self._append = append
        self._waiting: list[tuple[Sequence[Draft], asyncio.Future[list[Appended]]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def add(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Append drafts with the next batch. Raises what `append` has for the first of them that failed."""
        loop = asyncio.get_running_loop()
        appended: asyncio.Future[list[Appended]] = loop.create_future()
        self._waiting.append((drafts, appended))
        if self._sending is None:
            self._sending = loop.create_task(self._send())
        return await appended

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    outcomes = await self._append([draft for drafts, _ in batch for draft in drafts])
                except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to know
                    outcomes = [error] * sum(len(drafts) for drafts, _ in batch)
                _share(batch, outcomes)
        finally:
            self._sending = None


def _share(
    batch: list[tuple[Sequence[Draft], asyncio.Future[list[Appended]]]], outcomes: list[Appended | Exception]
) -> None:
    given = iter(outcomes)
    for drafts, appended in batch:
        own = [next(given) for _ in drafts]
        if appended.done():  # whoever waited was cancelled; its events are in the log all the same
            continue
        failed = next((outcome for outcome in own if isinstance(outcome, Exception)), None)
        if failed is not None:
            appended.set_exception(failed)
        else:
            appended.set_result([outcome for outcome in own if isinstance(outcome, Appended)])
