"""The Channels consumers: they accept a WebSocket, hand it to a session, and return."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from notifications.delivery import passport
from notifications.delivery.auth import Receive, Scope, Send, client_of, refuse
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.protocols.base import WireProtocol
from notifications.delivery.protocols.centrifuge import (
    CENTRIFUGE,
    CENTRIFUGE_NATIVE_PINGS,
    CENTRIFUGE_PROTOBUF,
    CENTRIFUGE_PROTOBUF_NATIVE_PINGS,
)
from notifications.delivery.protocols.plain import PLAIN
from notifications.delivery.protocols.sse import decode_cursors
from notifications.delivery.session import Session
from notifications.delivery.switchboard import current_switchboard
from notifications.delivery.transports import AsgiWebSocketTransport
from notifications.events.exceptions import LogUnavailable

EXTENSION = "hub.frames"


class SessionConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Accepts a WebSocket and adopts it as a session of the process's switchboard.

    Under the hub's own WebSocket class, which offers the ASGI extension `hub.frames`, the consumer returns at
    once and nothing of ASGI stays alive. Under any other server it lives on and feeds the session.
    """

    # The switchboard has the one channel of this process; a layer alias that is not configured gives none.
    channel_layer_alias = "hub-none"
    protocol: WireProtocol
    session: Session | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXTENSION not in scope.get("extensions", {}):
            await super().__call__(scope, receive, send)
            return
        # The one message before the hand-over, without the tasks in which Channels waits for those that follow.
        self.scope, self.base_send = scope, send
        await receive()
        with suppress(StopConsumer):
            await self.websocket_connect({})

    async def dispatch(self, message: dict[str, Any]) -> None:
        # Without the thread hop that Channels makes before every handler, to close database connections.
        await getattr(self, message["type"].replace(".", "_"))(message)

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        try:
            switchboard = await current_switchboard()
        except LogUnavailable as error:
            await refuse(self.scope, self.base_send, 503, str(error))
            raise StopConsumer from error
        refusal = switchboard.refusal()
        if refusal is not None:
            await refuse(self.scope, self.base_send, refusal.status, refusal.reason, headers=refusal.headers)
            raise StopConsumer
        identity: Identity = self.scope.get("identity", ANONYMOUS)
        protocol, subprotocol = self.spoken()
        await self.accept(subprotocol, headers=passport.set_cookie(identity))
        extension = self.scope.get("extensions", {}).get(EXTENSION)
        transport = (
            extension["transport"]
            if extension
            else AsgiWebSocketTransport(self.base_send, self._ended, binary=protocol.binary)
        )
        self.session = Session(switchboard, protocol, transport, identity, **client_of(self.scope))
        self.prepare(self.session)
        if extension:
            extension["adopt"](self.session)
            self.session.opened()
            raise StopConsumer
        self.session.opened()

    def spoken(self) -> tuple[WireProtocol, str | None]:
        """The protocol that is spoken, and the subprotocol to accept of those the client offers."""
        return self.protocol, None

    def prepare(self, session: Session) -> None:
        """Set what the protocol must know before the session opens."""

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        assert self.session is not None
        data = message.get("text")
        self.session.feed(message["bytes"] if data is None else data)

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        self._ended()
        raise StopConsumer

    def _ended(self) -> None:
        if self.session is not None:
            self.session.closed()


class CentrifugeConsumer(SessionConsumer):
    """`/connection/websocket`."""

    protocol = CENTRIFUGE

    def spoken(self) -> tuple[WireProtocol, str | None]:
        query = parse_qs(self.scope["query_string"].decode("latin-1"))
        native_pings = query.get("cf_ws_frame_ping_pong") == ["true"]
        offered = self.scope.get("subprotocols", ())
        asked = ["protobuf"] in (query.get("format"), query.get("cf_protocol"))
        if "centrifuge-protobuf" in offered or asked:
            subprotocol = "centrifuge-protobuf" if "centrifuge-protobuf" in offered else None
            return (CENTRIFUGE_PROTOBUF_NATIVE_PINGS if native_pings else CENTRIFUGE_PROTOBUF), subprotocol
        subprotocol = "centrifuge-json" if "centrifuge-json" in offered else None
        return (CENTRIFUGE_NATIVE_PINGS if native_pings else CENTRIFUGE), subprotocol


class PlainConsumer(SessionConsumer):
    """The tutorial's protocol on the topic that the URL names: `as_asgi(topic="chat:{room}", room="lobby")`."""

    protocol = PLAIN

    def __init__(self, topic: str, **parts: str) -> None:
        super().__init__()
        self.topic = topic
        self.parts = parts

    def prepare(self, session: Session) -> None:
        parts = {**self.parts, **self.scope.get("url_route", {}).get("kwargs", {})}
        session.state.topic = self.topic.format(**parts)
        session.state.greeting = f"You are now connected to {session.state.topic}"
        query = parse_qs(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if since := query.get("since"):
            session.state.resumes = True
            session.state.since = decode_cursors(since[0], [session.state.topic]).get(session.state.topic)
