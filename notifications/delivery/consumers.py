"""The Channels consumers: they accept a WebSocket, hand it to a session, and return."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from notifications.delivery import passport
from notifications.delivery.auth import Receive, Scope, Send, refuse
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.protocols.base import WireProtocol
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.protocols.plain import PLAIN
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
        if switchboard.draining:
            await refuse(self.scope, self.base_send, 503, "this process does not take sessions now; try another")
            raise StopConsumer
        identity: Identity = self.scope.get("identity", ANONYMOUS)
        await self.accept(self.subprotocol(), headers=passport.set_cookie(identity))
        extension = self.scope.get("extensions", {}).get(EXTENSION)
        transport = extension["transport"] if extension else AsgiWebSocketTransport(self.base_send, self._ended)
        self.session = Session(switchboard, self.protocol, transport, identity)
        self.prepare(self.session)
        if extension:
            extension["adopt"](self.session)
            self.session.opened()
            raise StopConsumer
        self.session.opened()

    def subprotocol(self) -> str | None:
        """The subprotocol to accept of those the client offers."""
        return None

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

    def subprotocol(self) -> str | None:
        return "centrifuge-json" if "centrifuge-json" in self.scope.get("subprotocols", ()) else None


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
