"""The WebSocket class to fall back on: uvicorn's own, which carries sessions as `websocket.py` does.

It costs several times the memory and the time of a handshake, and has a parser that the world has used for years.
`runhub` takes it when HUB_WEBSOCKET_CLASS names it, and uvicorn when `--ws` does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, websocket_text
from notifications.events import conf

if TYPE_CHECKING:
    # Its models need the apps loaded, and uvicorn may import this class before the application.
    from notifications.delivery.session import Session

logger = logging.getLogger(__name__)
# uvicorn notes every handshake with its query string, in which clients send tokens.
quiet_logger = logging.getLogger(f"{__name__}.connections")
quiet_logger.setLevel(logging.WARNING)

CLOSE_SECONDS = 5.0


class SansIOWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-IO WebSocket with the ASGI extension `hub.frames`.

    The extension holds this object as a session's `transport`, and `adopt`, which ties a session to it: from then
    on messages are fed to the session directly, and the application may return.
    """

    framing: Framing = staticmethod(websocket_text)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = quiet_logger
        self.session: Session | None = None
        self._adopted = False
        # No permessage-deflate: its contexts cost tens of kilobytes per connection, and a third of the throughput.
        self.conn = ServerProtocol(
            max_size=min(self.config.ws_max_size, conf.get("HUB_MAX_MESSAGE_BYTES")),
            logger=quiet_logger,
        )

    def adopt(self, session: Session) -> None:
        """Tie a session to this connection."""
        self.stop_keepalive()
        if self.disconnected or self.transport.is_closing():
            raise ClientDisconnected
        self.session = session
        self._adopted = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    # What uvicorn calls.

    def handle_connect(self, event: Request) -> None:
        # Older clients send the header empty, which the handshake takes for an error.
        if (
            "Sec-WebSocket-Protocol" in event.headers
            and not "".join(event.headers.get_all("Sec-WebSocket-Protocol")).strip()
        ):
            del event.headers["Sec-WebSocket-Protocol"]
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions["hub.frames"] = {"transport": self, "adopt": self.adopt}

    async def run_asgi(self) -> None:
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            logger.exception("the WebSocket application failed")
            self.send_500_response()
            self._adopted = False
        else:
            if not self.handshake_complete:
                self.send_500_response()
        if not self._adopted and self.close_timer is None:
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        if self.session is None:
            super().send_receive_event_to_app()
            return
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type != "text":
            self.session.feed(bytes(data))
            return
        try:
            text = bytes(data).decode()
        except UnicodeDecodeError:
            # Not send_close(), which raises when a close frame of the peer was parsed behind the text.
            self.conn.fail(1007)
            self.handle_parser_exception()
            return
        self.session.feed(text)

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._session_closed()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._session_closed()

    def _session_closed(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.closed()

    def shutdown(self) -> None:
        if self.session is not None:
            self.session.disconnect(codes.SHUTDOWN)
        else:
            super().shutdown()

    # What the session calls.

    @property
    def congested(self) -> bool:
        """Whether the peer takes what is written more slowly than it is."""
        return self.transport.get_write_buffer_size() > 0

    def write(self, frames: list[bytes]) -> None:
        """Write ready WebSocket frames, all in one go."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def pending(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    def ping(self) -> None:
        """Send a WebSocket ping; a peer that is gone makes the write fail sooner or later."""
        if not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(b"hub")
            self.transport.write(b"".join(self.conn.data_to_send()))

    def abort(self) -> None:
        """End the connection at once; what was not sent yet is dropped."""
        self.transport.abort()

    def close(self, code: Code) -> None:
        """Send a close frame, and abort the connection when the peer does not answer it in time."""
        self.session = None
        if self.close_sent or self.transport.is_closing():
            return
        try:
            self.conn.send_close(code.code, code.reason)
        except InvalidState:
            self.transport.abort()
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.transport.abort)
