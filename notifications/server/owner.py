"""The Unix socket through which other processes of the machine reach the memory log of this one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import msgspec
from django.core.exceptions import ImproperlyConfigured

from notifications.delivery.registry import registry
from notifications.delivery.roster import LiveSession
from notifications.events import conf, counters, local, messenger
from notifications.events.event import Cursor, decode
from notifications.events.exceptions import HubError
from notifications.events.layers import InProcessChannelLayer
from notifications.events.logs import Draft, memory_log
from notifications.events.logs.owner import page_answer
from notifications.events.topics import resolve

logger = logging.getLogger(__name__)

Operation = Callable[..., Any]


class OwnerServer:
    """Serves `HUB_SOCKET` on the running loop. Its file is readable and writable by its user alone."""

    def __init__(self) -> None:
        self.path = Path(conf.get("HUB_SOCKET"))
        self._server: asyncio.Server | None = None
        self._lock: IO[str] | None = None
        self._members: set[asyncio.Task[None]] = set()
        self.operations: dict[str, Operation] = {
            "append": _append,
            "read": _read,
            "positions": _positions,
            "remove": _remove,
            "send": _send,
            "group_send": _group_send,
            "count": counters.add,
            "totals": counters.totals,
            "sessions": _sessions,
        }

    async def start(self) -> None:
        """Become the owner of the memory log. Raises ImproperlyConfigured when another process is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImproperlyConfigured(
                f"another hub process already serves {self.path}: stop it, or give this one its own HUB_DATA"
            ) from error
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path=str(self.path), limit=local.MAX_LINE_BYTES)
        finally:
            os.umask(before)
        local.become_owner()

    async def stop(self) -> None:
        """Give the ownership back."""
        if self._server is not None:
            self._server.close()
        for task in list(self._members):
            task.cancel()
        self.path.unlink(missing_ok=True)
        local.resign()
        if self._lock is not None:
            self._lock.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = _Member(writer)
        task = asyncio.current_task()
        assert task is not None
        self._members.add(task)
        try:
            while line := await reader.readline():
                request = msgspec.json.decode(line)
                name, arguments = request["operation"], request["arguments"]
                if name in ("join", "leave"):
                    await (member.join(**arguments) if name == "join" else member.leave(**arguments))
                    continue
                writer.write(msgspec.json.encode(await self._answer(name, arguments)) + b"\n")
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception:
            logger.exception("a client of the hub's socket was disconnected")
        finally:
            self._members.discard(task)
            member.close()
            writer.close()

    async def _answer(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        operation = self.operations.get(name)
        if operation is None:
            return {"error": f"the hub process has no operation {name!r}; is it of another release?"}
        try:
            result = operation(**arguments)
            return {"result": await result if isinstance(result, Awaitable) else result}
        except HubError as error:
            return {"error": str(error)}
        except Exception as error:
            logger.exception("the operation %s failed", name)
            return {"error": repr(error)}


class _Member:
    """A channel that stands in the layer for one in another process, and writes to it what it receives."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.channel = ""
        self._forwarding: asyncio.Task[None] | None = None

    async def join(self, group: str) -> None:
        layer = messenger.layer()
        if not self.channel:
            self.channel = await layer.new_channel("hub-member.")
            self._forwarding = asyncio.create_task(self._forward())
        await layer.group_add(group, self.channel)

    async def leave(self, group: str) -> None:
        if self.channel:
            await messenger.layer().group_discard(group, self.channel)

    async def _forward(self) -> None:
        layer = messenger.layer()
        with contextlib.suppress(ConnectionError):
            while True:
                self.writer.write(msgspec.json.encode(await layer.receive(self.channel)) + b"\n")
                await self.writer.drain()

    def close(self) -> None:
        if self._forwarding is not None:
            self._forwarding.cancel()


def _append(
    event: str,
    idempotency_key: str | None,
    exclude: str | None,
    version: int = 0,
    version_epoch: str = "",
    keep: bool = True,
) -> dict[str, Any]:
    decoded = decode(event, offset=0, epoch="")
    draft = Draft(resolve(decoded.topic), decoded, idempotency_key, exclude, version, version_epoch, keep)
    appended, repeated = memory_log().append([draft])[0]
    answer: dict[str, Any] = {"offset": appended.offset, "epoch": appended.epoch, "repeated": repeated}
    if repeated:
        answer["event"] = Draft(draft.topic, appended).encoded
    return answer


def _read(topic: str, since: dict[str, Any] | None, limit: int | None, reverse: bool) -> dict[str, Any]:
    cursor = None if since is None else Cursor(**since)
    return page_answer(memory_log().read(resolve(topic), since=cursor, limit=limit, reverse=reverse))


def _positions(topics: list[str]) -> dict[str, dict[str, Any]]:
    positions = memory_log().positions([resolve(topic) for topic in topics])
    return {name: {"offset": cursor.offset, "epoch": cursor.epoch} for name, cursor in positions.items()}


def _remove(topic: str) -> None:
    memory_log().remove(resolve(topic))


def _sessions(user: str | None) -> list[LiveSession]:
    return registry().sessions(user)


def _layer() -> InProcessChannelLayer:
    layer = messenger.layer()
    assert isinstance(layer, InProcessChannelLayer)
    return layer


def _send(channel: str, message: dict[str, Any]) -> None:
    _layer().deliver(channel, message)


def _group_send(group: str, message: dict[str, Any]) -> None:
    _layer().deliver_to_group(group, message)
