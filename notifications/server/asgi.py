"""The ASGI side of a WebSocket: what an application sees of it until a session takes it over, if one does."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from uvicorn.protocols.utils import ClientDisconnected, get_local_addr, get_remote_addr, is_ssl

from notifications.server.handshake import Headers, Request, response
from notifications.server.messages import may_be_sent

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from notifications.server.websocket import HubWebSocketProtocol

logger = logging.getLogger(__name__)

# Messages that an application has not received yet, before no more is read from the client.
MAX_UNRECEIVED = 32


class AsgiWebSocket:
    """Runs the application for one connection, and speaks ASGI's WebSocket protocol with it (spec 2.4)."""

    def __init__(
        self,
        protocol: HubWebSocketProtocol,
        request: Request,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        self.protocol = protocol
        self.request = request
        self.config = config
        self.default_headers: Headers = server_state.default_headers
        self.loop = asyncio.get_running_loop()
        self.accepted = False
        self.adopted = False
        self.finished = False  # the application has closed, or refused
        self.disconnect: dict[str, Any] | None = None
        self._refusal: tuple[int, Headers, list[bytes]] | None = None
        self._received: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._arrived: asyncio.Future[None] | None = None
        self._reading = True
        self._drained = asyncio.Event()
        self._drained.set()
        self._keepalive: asyncio.TimerHandle | None = None
        self._unanswered: bytes | None = None
        self._pinged_at = 0.0
        self.scope = self._scope(app_state)
        task = self.loop.create_task(self._run())
        server_state.tasks.add(task)
        task.add_done_callback(server_state.tasks.discard)

    def _scope(self, app_state: dict[str, Any]) -> dict[str, Any]:
        request, transport, root = self.request, self.protocol.transport, self.config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(transport) else "ws",
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "root_path": root,
            "path": root + unquote(request.path.decode("ascii")),
            "raw_path": root.encode("ascii") + request.path,
            "query_string": request.query,
            "headers": request.headers,
            "subprotocols": request.subprotocols,
            "state": app_state.copy(),
            "extensions": {
                "websocket.http.response": {},
                "hub.frames": {"transport": self.protocol, "adopt": self.protocol.adopt},
            },
        }

    async def _run(self) -> None:
        failed = False
        try:
            await self.config.loaded_app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:  # what ends the application ends its connection, and the server goes on
            logger.exception("the WebSocket application failed")
            failed = True
        if self.disconnect is not None:
            return  # the connection ends already, in its own time
        if failed:
            self.protocol.fail(1011, "internal server error")
        elif not self.accepted:
            logger.error("the application returned without accepting the WebSocket or refusing it")
            self.refuse(500, [], b"Internal Server Error")
        elif not self.adopted:
            self.protocol.finish()

    # What the application calls.

    async def receive(self) -> dict[str, Any]:
        while not self._received:
            if self.disconnect is not None:
                return self.disconnect
            self._arrived = self.loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        message = self._received.popleft()
        if not self._received:
            self._read_on()
        return message

    async def send(self, message: Mapping[str, Any]) -> None:
        await self._drained.wait()
        if self.disconnect is not None:
            raise ClientDisconnected
        kind = message["type"]
        if kind == "websocket.accept" and not self.accepted and self._refusal is None and not self.finished:
            self._accept(message)
        elif kind == "websocket.send" and self.accepted and not self.finished:
            data, text = message.get("bytes"), message.get("text")
            self.protocol.send_message(data if data is not None else text or "")
        elif kind == "websocket.close" and not self.finished:
            self._close(message)
        elif kind == "websocket.http.response.start" and not self.accepted and self._refusal is None:
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._refusal = (message["status"], headers, [])
        elif kind == "websocket.http.response.body" and self._refusal is not None and not self.finished:
            status, headers, body = self._refusal
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                self.refuse(status, headers, b"".join(body))
        else:
            raise RuntimeError(f"the ASGI message {kind!r} is not expected now")

    def _accept(self, message: Mapping[str, Any]) -> None:
        subprotocol = message.get("subprotocol")
        if subprotocol and subprotocol not in self.request.subprotocols:
            raise ValueError(f"the subprotocol {subprotocol!r} was not offered")  # RFC 6455 §4.2.2
        self.accepted = True
        headers = [*self.default_headers, *((bytes(name), bytes(value)) for name, value in message.get("headers", ()))]
        self.protocol.accept(self.request, subprotocol=subprotocol, headers=headers)
        if self.config.ws_ping_interval and not self.adopted:
            self._keepalive = self.loop.call_later(self.config.ws_ping_interval, self._keep_alive)

    def _close(self, message: Mapping[str, Any]) -> None:
        if not self.accepted:
            self.refuse(403, [], b"")
            return
        code, reason = message.get("code", 1000), message.get("reason") or ""
        if code != 1005 and not may_be_sent(code):
            raise ValueError(f"the close code {code} may not be sent")  # RFC 6455 §7.4
        self.finished = True
        self.disconnected(code, reason)
        self.protocol.send_close(code, reason)

    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the handshake with an ordinary HTTP response."""
        if self.finished or self.accepted:
            return
        self.finished = True
        self.disconnected(1006)
        self.protocol.refuse(response(status, [*self.default_headers, *headers], body))

    # What the protocol calls.

    def adopt(self) -> bool:
        """A session takes the connection over; returns whether there are messages for it already."""
        self.adopted = True
        self._stop_keepalive()
        self._read_on()
        return any(message["type"] == "websocket.receive" for message in self._received)

    def unreceived(self) -> list[str | bytes]:
        """The messages that the application has not received, and never will."""
        self._read_on()
        return [
            message["text"] if "text" in message else message["bytes"]
            for message in self._received
            if message["type"] == "websocket.receive"
        ]

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            if not self.protocol.transport.is_closing():
                self.protocol.transport.resume_reading()

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def received(self, message: str | bytes) -> None:
        """A message of the client arrived."""
        if self.finished:
            return
        self._put({"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message})
        if self._reading and len(self._received) >= MAX_UNRECEIVED:
            self._reading = False
            self.protocol.transport.pause_reading()

    def answered(self, payload: bytes) -> None:
        """A pong arrived; one that answers no ping of ours is ignored."""
        if payload == self._unanswered:
            self._unanswered = None

    def disconnected(self, code: int, reason: str = "") -> None:
        """The connection ends, whoever ended it."""
        if self.disconnect is None:
            self.disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._drained.set()
            self._wake()
            self._stop_keepalive()
            # Whether or not the application takes the rest: the peer's close frame is behind it.
            self._read_on()

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        if self.disconnect is None:
            self._drained.clear()

    def resume_writing(self) -> None:
        """The client takes more."""
        self._drained.set()

    def _put(self, message: dict[str, Any]) -> None:
        self._received.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _keep_alive(self) -> None:
        """Ping a client whose session, if it had one, would do that; fail the connection when one is not answered."""
        interval, timeout = self.config.ws_ping_interval, self.config.ws_ping_timeout
        now = self.loop.time()
        if self._unanswered is None:
            self._unanswered, self._pinged_at = os.urandom(4), now
            self.protocol.send_ping(self._unanswered)
        elif timeout is not None and now >= self._pinged_at + timeout:
            self.protocol.fail(1011, "keepalive ping timeout")
            return
        if interval is not None:
            self._keepalive = self.loop.call_later(min(interval, timeout or interval), self._keep_alive)
