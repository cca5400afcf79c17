"""Files that tasks export for download."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from notifications.events import Cursor, Event
from notifications.events.exceptions import LogUnavailable
from notifications.events.selectors import history, position

KEEP_SECONDS = 7 * 86_400
PAGE_EVENTS = 500

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.jsonl")


def folder() -> Path:
    """Where the files are; shared by the processes that write and that serve them."""
    return Path(settings.MEDIA_ROOT) / "exports"


def path_of(name: str) -> Path | None:
    """The file called `name`, or None when there is none."""
    path = folder() / name
    return path if _NAME.fullmatch(name) and path.is_file() else None


def address_of(path: Path) -> str:
    """The address from which staff download a file."""
    return reverse("task-export", args=[path.name])


def write_history(topic: str, *, tell: Callable[[int, int], None]) -> Path:
    """Write the kept events of a topic as JSON lines, oldest first; returns the file.

    `tell` is called with the number of written events and of all. Raises UnknownTopic, and LogUnavailable when the
    log cannot be reached or lost its memory meanwhile.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", topic).strip("-")[:60] or "topic"
    name = f"{readable}-{timezone.now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.jsonl"
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    path, unfinished = folder() / name, folder() / f".{name}.part"
    try:
        with unfinished.open("wb") as file:
            for page, done, total in _pages(topic):
                file.writelines(msgspec.json.encode(event) + b"\n" for event in page)
                tell(done, total)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _pages(topic: str) -> Iterator[tuple[list[Event], int, int]]:
    """The events up to the topic's position at the beginning, in pages, with how many are done and there are."""
    end, since, done, total = position(topic), None, 0, 0
    while True:
        events, now = history(topic, limit=PAGE_EVENTS, since=since)
        if now.epoch != end.epoch:
            raise LogUnavailable(f"the log of {topic} began anew while it was read")
        page = [event for event in events if (event.offset or 0) <= end.offset]
        if not page:
            return
        if since is None:
            total = end.offset - (page[0].offset or 0) + 1
        done += len(page)
        yield page, done, total
        since = Cursor(page[-1].offset or 0, end.epoch)


def delete_old_files() -> int:
    """Delete files that were exported long ago; returns how many."""
    oldest, deleted = time.time() - KEEP_SECONDS, 0
    for path in folder().glob("*.jsonl*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
            deleted += 1
    return deleted
