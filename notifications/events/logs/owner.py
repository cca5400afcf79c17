"""The memory log of another process of this machine, reached through its Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from notifications.events import local
from notifications.events.event import Cursor, at_position, decode, encode
from notifications.events.logs.base import Appended, Draft, Log, Page
from notifications.events.topics import ResolvedTopic


class OwnerLog(Log):
    """Appends to and reads from the process that owns the memory log; LogUnavailable when none runs."""

    def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        appended = []
        for draft in drafts:
            answer = local.owner.call(
                "append",
                event=draft.encoded,
                idempotency_key=draft.idempotency_key,
                exclude=draft.exclude,
                keep=draft.keep,
                version=draft.version,
                version_epoch=draft.version_epoch,
            )
            event = at_position(draft.event, offset=answer["offset"], epoch=answer["epoch"])
            if answer["repeated"]:
                event = decode(answer["event"], offset=answer["offset"], epoch=answer["epoch"])
            appended.append(Appended(event, answer["repeated"]))
        return appended

    async def aappend(self, drafts: Sequence[Draft]) -> list[Appended]:
        return await asyncio.to_thread(self.append, drafts)

    def read(self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False) -> Page:
        answer = local.owner.call(
            "read",
            topic=topic.name,
            since=None if since is None else {"offset": since.offset, "epoch": since.epoch},
            limit=limit,
            reverse=reverse,
        )
        position = Cursor(**answer["position"])
        events = [decode(text, offset=offset, epoch=position.epoch) for offset, text in answer["events"]]
        return Page(events, position)

    async def aread(
        self, topic: ResolvedTopic, *, since: Cursor | None, limit: int | None, reverse: bool = False
    ) -> Page:
        return await asyncio.to_thread(self.read, topic, since=since, limit=limit, reverse=reverse)

    def positions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        answer = local.owner.call("positions", topics=[topic.name for topic in topics])
        return {name: Cursor(**position) for name, position in answer.items()}

    async def apositions(self, topics: Iterable[ResolvedTopic]) -> dict[str, Cursor]:
        return await asyncio.to_thread(self.positions, list(topics))

    def remove(self, topic: ResolvedTopic) -> None:
        local.owner.call("remove", topic=topic.name)

    async def aremove(self, topic: ResolvedTopic) -> None:
        await asyncio.to_thread(self.remove, topic)


def page_answer(page: Page) -> dict[str, Any]:
    """A page as the owning process answers it."""
    return {
        "position": {"offset": page.position.offset, "epoch": page.position.epoch},
        "events": [[event.offset, encode(event)] for event in page.events],
    }
