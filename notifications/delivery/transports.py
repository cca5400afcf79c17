"""Transports for servers that offer nothing but ASGI: the connection's own coroutine sends what is written."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, unframed

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]

_CLOSE_SECONDS = 5.0


class AsgiTransport(ABC):
    """Sends a session's payloads as ASGI events, one after the other, in a task that lives while there are any."""

    framing: Framing = staticmethod(unframed)

    def __init__(self, send: Send, on_close: Callable[[], object]) -> None:
        self._send = send
        self._on_close = on_close
        self._queue: list[dict[str, Any]] = []
        self._pending = 0
        self._sender: asyncio.Task[None] | None = None
        self._closing = False

    @abstractmethod
    def event(self, payload: bytes) -> dict[str, Any]:
        """The ASGI event that carries a payload."""

    @abstractmethod
    def close_event(self, code: Code) -> dict[str, Any]:
        """The ASGI event that ends the connection."""

    def write(self, frames: list[bytes]) -> None:
        if self._closing:
            return
        self._queue += [self.event(frame) for frame in frames]
        self._pending += sum(map(len, frames))
        self._start()

    @property
    def congested(self) -> bool:
        return self._pending > 0

    def pending(self) -> int:
        return self._pending

    def ping(self) -> None:
        """Do nothing: ASGI has no event for it, and the server pings by itself."""
        return

    def close(self, code: Code) -> None:
        self._closing = True
        self._queue.append(self.close_event(code))
        self._start()
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._give_up)

    def _start(self) -> None:
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                events, self._queue = self._queue, []
                taken = self._pending
                for event in events:
                    await self._send(event)
                self._pending -= taken  # more may have been written meanwhile
        except Exception:  # noqa: BLE001 - every server has its own error for a peer that is gone
            self._closing = True
            self._queue.clear()
        finally:
            self._sender = None
            if self._closing:
                self._on_close()

    def _give_up(self) -> None:
        if self._sender is not None:
            self._sender.cancel()


class AsgiWebSocketTransport(AsgiTransport):
    """A WebSocket of any ASGI server."""

    def __init__(self, send: Send, on_close: Callable[[], None], *, binary: bool = False) -> None:
        super().__init__(send, on_close)
        self._binary = binary

    def event(self, payload: bytes) -> dict[str, Any]:
        if self._binary:
            return {"type": "websocket.send", "bytes": payload}
        return {"type": "websocket.send", "text": payload.decode()}

    def close_event(self, code: Code) -> dict[str, Any]:
        return {"type": "websocket.close", "code": code.code, "reason": code.reason}


class AsgiStreamTransport(AsgiTransport):
    """An HTTP answer that does not end by itself: what is written waits until it has begun.

    `receiving` is the task that waits for the client to go away; it is cancelled when the server has ended the answer.
    A client that does not take its end in time is cut off where the server's scope says how, see `aborting.py`.
    """

    def __init__(self, scope: Mapping[str, Any], send: Send, receiving: asyncio.Task[None], framing: Framing) -> None:
        super().__init__(send, receiving.cancel)
        self.framing = framing
        self._begun = False
        self._abort: Callable[[], None] | None = (scope.get("extensions") or {}).get("hub.abort")

    def begin(self, headers: Iterable[tuple[bytes, bytes]], prelude: bytes = b"") -> None:
        """Send the head of the answer, and the first bytes of its body."""
        head = [
            *headers,
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            # nginx would hold what is sent back until its buffer is full.
            (b"x-accel-buffering", b"no"),
        ]
        if self._abort is not None:
            head.append((b"connection", b"close"))  # or a later request would be cut off in the end
        start = {"type": "http.response.start", "status": 200, "headers": head}
        self._queue[:0] = [start, self.event(prelude)]
        self._begun = True
        self._start()

    def _start(self) -> None:
        if self._begun:
            super()._start()

    def _give_up(self) -> None:
        if self._abort is not None:
            self._abort()
        super()._give_up()

    def event(self, payload: bytes) -> dict[str, Any]:
        return {"type": "http.response.body", "body": payload, "more_body": True}

    def close_event(self, code: Code) -> dict[str, Any]:
        return {"type": "http.response.body", "body": b"", "more_body": False}


async def until_disconnected(receive: Receive) -> None:
    """Wait until the client of an HTTP request has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
