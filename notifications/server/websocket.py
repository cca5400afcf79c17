"""The WebSocket class for `uvicorn --ws`: a small object per connection, without a task, queue or timer of its own.

What decided its form, measured with 1,000 and 10,000 sockets: nine tenths of the memory of a connection were the
objects around it (the sans-IO parser with its generators, the ASGI scope, a queue, a task), and nine tenths of the
time of a broadcast is the kernel's send path. So the ASGI side is an object that is dropped when a session takes
over, what is left has slots, and frames are written as they are given.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.utils import ClientDisconnected

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, websocket_deflated_text, websocket_frame, websocket_text
from notifications.events import conf
from notifications.server import handshake
from notifications.server.asgi import AsgiWebSocket
from notifications.server.handshake import Headers, Refused, Request
from notifications.server.messages import BINARY, CLOSE, PING, PONG, TEXT, MessageParser

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    # Its models need the apps loaded, and uvicorn may import this class before the application.
    from notifications.delivery.session import Session

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
# From so many unsent bytes on, event loops say that a connection is congested.
ORDINARY_HIGH_WATER = 65_536
SESSION_PING = b"hub"


class HubWebSocketProtocol(asyncio.Protocol):
    """One WebSocket connection, made by uvicorn from the HTTP request that asks for it.

    The ASGI extension `hub.frames` holds this object as a session's `transport`, and `adopt`, which ties a session
    to it: from then on messages are fed to the session directly, and the application may return. An application
    that does not adopt is served as ASGI has it.
    """

    __slots__ = (
        "_asgi",
        "_ending",
        "_made_with",
        "_parser",
        "_timer",
        "close_sent",
        "closed",
        "congested",
        "connections",
        "session",
        "transport",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.connections: set[Any] = server_state.connections
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.session: Session | None = None
        self.close_sent = False
        self.closed = False
        self.congested = False
        self._ending = False
        self._made_with: tuple[Config, ServerState, dict[str, Any]] | None = (config, server_state, app_state)
        self._asgi: AsgiWebSocket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parser = MessageParser(max_size=min(config.ws_max_size, conf.get("HUB_MAX_MESSAGE_BYTES")))

    # What the event loop and uvicorn call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.connections.add(self)
        http: Any = self.transport.get_protocol()
        if getattr(http, "parser", None) is not None:
            # uvicorn's HTTP protocol and its parser refer to each other: they would wait for the cyclic collector.
            http.parser = None

    def data_received(self, data: bytes) -> None:
        if self._made_with is not None:
            self._open(data)
        elif self._asgi is not None and not self._asgi.accepted:
            # A client has to wait for the handshake's answer; how much it may send all the same is limited.
            self._parser.hold(data)
            if self._parser.held > self._parser.max_size:
                self.transport.abort()
        else:
            self._received(data)

    def _open(self, data: bytes) -> None:
        assert self._made_with is not None
        config, server_state, app_state = self._made_with
        self._made_with = None
        try:
            request = handshake.read_request(data)
        except Refused as refused:
            headers = [*server_state.default_headers, *refused.headers]
            self.refuse(handshake.response(refused.status, headers, str(refused).encode()))
            return
        self._asgi = AsgiWebSocket(self, request, config, server_state, app_state)

    def _received(self, data: bytes) -> None:
        for opcode, payload in self._parser.feed(data):
            if opcode in (TEXT, BINARY):
                self._feed(payload)
            elif opcode == PING:
                self._answer(payload)
            elif opcode == PONG:
                if self._asgi is not None:
                    self._asgi.answered(payload)
            elif opcode == CLOSE:
                self._closed_by_peer(*payload)
            else:
                self._broken_by_peer(*payload)

    def _feed(self, message: str | bytes) -> None:
        if self.close_sent:
            return
        if self._asgi is not None:
            self._asgi.received(message)
        elif self.session is not None:
            self.session.feed(message)

    def _answer(self, payload: bytes) -> None:
        # Also after a close frame of ours: a pong is owed until the peer's arrives (RFC 6455 §5.5.2).
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > conf.get("HUB_MAX_OUTGOING_BYTES"):
            self.transport.abort()  # it asks and asks, and takes no answer
        else:
            self.transport.write(websocket_frame(0x80 | PONG, payload))

    def _broken_by_peer(self, code: int, reason: str) -> None:
        self._hand_over()
        if self.close_sent or not self.transport.can_write_eof():
            self.fail(code, reason)
            return
        self.send_close(code, reason)
        self._gone(code, reason)
        if not self.transport.is_closing():
            # Closing while the peer still sends, the rest of a message that is too big say, would reset the
            # connection, and the close frame be lost with it: read on until it closes, or is aborted (§7.1.1).
            self.transport.write_eof()

    def _closed_by_peer(self, code: int, reason: str) -> None:
        self._hand_over()
        if not self.close_sent:
            self.send_close(code, reason if code != 1005 else "")
        self._gone(code, reason)
        self._end()

    def eof_received(self) -> bool:
        self._end()
        return False

    def pause_writing(self) -> None:
        self.congested = True
        self._lend_stream()
        if self._asgi is not None:
            self._asgi.pause_writing()

    def resume_writing(self) -> None:
        self.congested = False
        self._lend_stream()
        if self._asgi is not None:
            self._asgi.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self._ending = True
        self.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gone(1006 if not self.close_sent else 1005)

    def shutdown(self) -> None:
        """Close, as the server stops."""
        if self.session is not None:
            self.session.disconnect(codes.SHUTDOWN)
        elif self._asgi is not None and not self._asgi.accepted:
            self._asgi.refuse(503, [(b"retry-after", b"1")], b"the server stops")
        elif self._asgi is not None:
            self.fail(1012, "service restart")

    # What the ASGI side calls.

    def accept(self, request: Request, *, subprotocol: str | None, headers: Headers) -> None:
        """Write the response that opens the WebSocket, and read on."""
        if self.transport.is_closing():
            raise ClientDisconnected
        deflate = request.deflate and conf.get("HUB_WEBSOCKET_DEFLATE")
        self._parser.inflates = deflate
        self.transport.write(handshake.accepted(request, deflate=deflate, subprotocol=subprotocol, headers=headers))
        if self._parser.held:
            asyncio.get_running_loop().call_soon(self._received, b"")

    def refuse(self, answer: bytes) -> None:
        """Write an HTTP response instead, and close."""
        self.close_sent = True
        if not self.transport.is_closing():
            self.transport.write(answer)
            self._end()

    def send_message(self, message: str | bytes) -> None:
        """Send a message of the application."""
        if not self.close_sent and not self.transport.is_closing():
            frame = (
                self.framing(message.encode()) if isinstance(message, str) else websocket_frame(0x80 | BINARY, message)
            )
            self.transport.write(frame)

    def send_ping(self, payload: bytes) -> None:
        """Send a ping with a payload of at most 125 bytes."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(websocket_frame(0x80 | PING, payload))

    def send_close(self, code: int, reason: str) -> None:
        """Send a close frame, and abort the connection when the peer does not answer it in time."""
        if self.close_sent or self.transport.is_closing():
            return
        self.close_sent = self._ending = True
        payload = b"" if code == 1005 else code.to_bytes(2, "big") + _shortened(reason)
        self.transport.write(websocket_frame(0x80 | CLOSE, payload))
        self._abort_later()

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 §7.1.7): say why, tell the owner, and wait for no answer."""
        if self._asgi is not None and not self._asgi.accepted:
            self._asgi.refuse(500, [], b"Internal Server Error")
            return
        self.send_close(code, reason)
        self._gone(code, reason)
        self._end()

    def finish(self) -> None:
        """The application returned without closing: close for it."""
        self.send_close(1000, "")
        self._end()

    # What the session calls.

    def adopt(self, session: Session) -> None:
        """Tie a session to this connection. Raises ClientDisconnected when there is none any more."""
        if self.closed or self.close_sent or self.transport.is_closing():
            raise ClientDisconnected
        assert self._asgi is not None
        limit = conf.get("HUB_MAX_OUTGOING_BYTES")
        if limit < ORDINARY_HIGH_WATER:
            self.transport.set_write_buffer_limits(high=limit)
        self.session = session
        self._lend_stream()
        if self._asgi.adopt():
            # Not before the session was opened. Until then the ASGI side takes what arrives, to keep the order:
            # loops may read from sockets before they call what is to be called soon.
            asyncio.get_running_loop().call_soon(self._hand_over)
        else:
            self._asgi = None

    @property
    def framing(self) -> Framing:
        """What makes a frame of a payload on this connection."""
        return websocket_deflated_text if self._parser.inflates else websocket_text

    def write(self, frames: list[bytes]) -> None:
        """Write ready WebSocket frames, all in one go."""
        if not self._ending:
            # The socket may have failed just now; `connection_lost` follows.
            try:
                self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
            except RuntimeError:
                self._ending = True
                self._lend_stream()

    def pending(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    def ping(self) -> None:
        """Send a WebSocket ping; a peer that is gone makes the write fail sooner or later."""
        self.send_ping(SESSION_PING)

    def close(self, code: Code) -> None:
        """Send a close frame, and abort the connection when the peer does not answer it in time."""
        self.session = None
        self.send_close(code.code, code.reason)

    def abort(self) -> None:
        """End the connection at once; what was not sent yet is dropped."""
        self.transport.abort()

    def _lend_stream(self) -> None:
        """Let the session write to the stream itself, as long as the peer takes what it is sent."""
        if self.session is not None:
            self.session.use_stream(None if self._ending or self.congested else self.transport)

    # The end.

    def _hand_over(self) -> None:
        """Feed the session what the application had not received when it was adopted."""
        if self.session is not None and self._asgi is not None:
            asgi, self._asgi = self._asgi, None
            for message in asgi.unreceived():
                self._feed(message)

    def _gone(self, code: int, reason: str = "") -> None:
        """Tell the owner, once, that the connection ends."""
        self._hand_over()
        session, self.session = self.session, None
        if session is not None:
            session.closed()
        asgi, self._asgi = self._asgi, None
        if asgi is not None:
            asgi.disconnected(code, reason)

    def _end(self) -> None:
        """Close once everything is written; abort a peer that does not take it."""
        self._ending = True
        self._lend_stream()
        if not self.closed:
            self._abort_later()
            self.transport.close()

    def _abort_later(self) -> None:
        # transport.close() waits for the peer to take what is buffered, for ever if need be.
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.transport.abort)


def _shortened(reason: str) -> bytes:
    """A reason as it fits into a close frame (RFC 6455 §5.5), cut between characters."""
    return reason.encode()[:123].decode(errors="ignore").encode()
