"""`/events?topic=…`: the ASGI application that streams Server-Sent Events."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from notifications.delivery import codes
from notifications.delivery.auth import Receive, Scope, Send, client_of, cookies_of, header, identity_of_cookies
from notifications.delivery.codes import CommandError, Disconnect
from notifications.delivery.frames import unframed
from notifications.delivery.identity import Identity
from notifications.delivery.limits import Refusal
from notifications.delivery.protocols.sse import RETRY_MILLISECONDS, SSE, StreamSession, decode_cursors, opening
from notifications.delivery.responses import Problem, respond
from notifications.delivery.subscription import Recovery
from notifications.delivery.switchboard import current_switchboard
from notifications.delivery.tokens import identify
from notifications.delivery.transports import AsgiStreamTransport, until_disconnected
from notifications.events.exceptions import LogUnavailable

logger = logging.getLogger(__name__)


async def come_back(send: Send, reason: str, *, seconds: float = 0.0) -> None:
    """Answer an `EventSource` with a stream that ends at once: it comes back after that, but never after an error.

    It does so after the usual time, or after `seconds` where those are more.
    """
    retry = max(RETRY_MILLISECONDS, math.ceil(1000 * seconds))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": f"retry: {retry}\n: {reason}\n\n".encode()})


Identify = Callable[[Scope], Awaitable[Identity | None]]

_STATUS = {
    codes.UNKNOWN_TOPIC: 404,
    codes.LIMIT_EXCEEDED: 400,
    codes.BAD_REQUEST: 400,
    codes.PERMISSION_DENIED: 403,
    codes.TOKEN_EXPIRED: 401,
    codes.UNAUTHORIZED: 401,
}


async def _refuse(scope: Scope, send: Send, status: int, detail: str) -> None:
    await respond(scope, send, Problem(status, detail).response)


def _is_event_source(scope: Scope) -> bool:
    return "text/event-stream" in header(scope, b"accept")


class Refused(Exception):
    """The process takes no further session now."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class EventStream:
    """Streams the events of one or more topics to one client.

    A client is known by a bearer token, by what `identify` finds (an API key, say), or by its Django session.
    """

    def __init__(self, identify: Identify | None = None) -> None:
        self.identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        topics = list(dict.fromkeys(query.get("topic", [])))
        if scope["method"] != "GET":
            await _refuse(scope, send, 405, "ask for events with GET")
            return
        if not topics or not all(topics):
            await _refuse(scope, send, 400, "name at least one topic: /events?topic=…")
            return
        receiving = asyncio.create_task(until_disconnected(receive))
        try:
            transport = AsgiStreamTransport(scope, send, receiving, unframed)
            session, recoveries = await self._open(scope, transport, topics, query)
            await self._stream(session, transport, recoveries, receiving)
        except Refused as error:
            refusal = error.refusal
            if _is_event_source(scope):
                await come_back(send, refusal.reason, seconds=refusal.seconds)
                return
            await respond(scope, send, Problem(refusal.status, refusal.reason, headers=refusal.headers).response)
        except CommandError as error:
            status = _STATUS.get(error.code, 503)
            if status == 503 and _is_event_source(scope):
                await come_back(send, error.detail or error.code.reason)
                return
            await _refuse(scope, send, status, error.detail or f"{error.code.reason} (topic: {', '.join(topics)})")
            return
        except Disconnect as error:
            await _refuse(scope, send, 401, error.code.reason)
            return
        except LogUnavailable as error:
            await _refuse(scope, send, 503, str(error))
        finally:
            receiving.cancel()

    async def _open(
        self, scope: Scope, transport: AsgiStreamTransport, topics: list[str], query: dict[str, list[str]]
    ) -> tuple[StreamSession, list[Recovery]]:
        """A session that is subscribed to all the topics, its subscriptions still held."""
        identity = await self._identity(scope)
        switchboard = await current_switchboard()
        refusal = switchboard.refusal()
        if refusal is not None:
            raise Refused(refusal)
        last = header(scope, b"last-event-id") or query.get("since", query.get("lastEventId", [""]))[0]
        cursors = decode_cursors(last, topics)
        session = StreamSession(switchboard, SSE, transport, identity, **client_of(scope))
        session.opened()
        recoveries = []
        try:
            for topic in topics:
                recovery = await session.subscribe(topic, since=cursors.get(topic))
                recoveries.append(recovery)
                if recovery.subscription.topic.retention.kept:
                    if last and topic not in cursors:  # it was to be resumed, from where its id does not say
                        recoveries[-1] = recovery._replace(recovered=False)
                    # Not the position where it goes live: a stream cut during the replay resumes within it.
                    start = cursors[topic] if recovery.recovered else recovery.position
                    session.state.cursors[topic] = start
        except BaseException:
            session.closed()
            raise
        return session, recoveries

    async def _identity(self, scope: Scope) -> Identity:
        scheme, _, token = header(scope, b"authorization").partition(" ")
        if self.identify is not None and (found := await self.identify(scope)) is not None:
            return found
        if scheme.lower() == "bearer" and token:
            return await identify(token.strip())
        return await identity_of_cookies(cookies_of(scope))

    async def _stream(
        self,
        session: StreamSession,
        transport: AsgiStreamTransport,
        recoveries: list[Recovery],
        receiving: asyncio.Task[None],
    ) -> None:
        try:
            asked = [recovery.recovered for recovery in recoveries if recovery.recovered is not None]
            first = opening(session.state.cursors, all(asked) if asked else None)
            transport.begin([(b"content-type", b"text/event-stream; charset=utf-8")], first)
            for recovery in recoveries:
                for frame in recovery.events.each(session.encoding, session.encoding.frame):
                    session.send_frame(frame)
                recovery.subscription.release()
            await asyncio.wait([receiving])
        finally:
            session.closed()
