"""How far the durable log has come, remembered where a restore of the database does not put it back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_clients import sync_client, translated_errors

_REACHED = (Path(__file__).parent / "reached.lua").read_text()
_REACHED_KEY = "hub:reached"


class Reached(NamedTuple):
    """The epoch of the database, and how many events it had numbered."""

    epoch: str
    number: int


class Memory(Protocol):
    """A place outside of the database. Both operations raise LogUnavailable."""

    def recall(self) -> Reached:
        """What was remembered last; nothing yet is an epoch that no database has."""
        ...

    def remember(self, reached: Reached) -> None:
        """Remember it, unless more is known of the same epoch."""
        ...


def memory() -> Memory | None:
    """The Redis that all processes share, or a file beside the socket of the one process; None where neither is."""
    if conf.get("HUB_REDIS_URL"):
        return RedisMemory()
    if socket := conf.get("HUB_SOCKET"):
        return FileMemory(Path(socket).with_suffix(".reached"))
    return None


class RedisMemory:
    """A hash in Redis."""

    def recall(self) -> Reached:
        with translated_errors():
            found: Any = sync_client().hmget(_REACHED_KEY, "e", "n")
        return Reached((found[0] or b"").decode(), int(found[1] or 0))

    def remember(self, reached: Reached) -> None:
        with translated_errors():
            sync_client().eval(_REACHED, 1, _REACHED_KEY, *reached)


class FileMemory:
    """A file with a line in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self) -> Reached:
        try:
            epoch, number = self.path.read_text().split()
            return Reached(epoch, int(number))
        except (FileNotFoundError, ValueError):
            return Reached("", 0)
        except OSError as error:
            raise LogUnavailable(f"{self.path} cannot be read: {error}") from error

    def remember(self, reached: Reached) -> None:
        known = self.recall()
        if known.epoch == reached.epoch and known.number >= reached.number:
            return
        written = self.path.with_suffix(".written")
        try:
            written.write_text(f"{reached.epoch} {reached.number}\n")
            os.replace(written, self.path)
        except OSError as error:
            raise LogUnavailable(f"{self.path} cannot be written: {error}") from error
