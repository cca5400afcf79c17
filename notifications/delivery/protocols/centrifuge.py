"""The Centrifuge client protocol, JSON: what the hub's own pages and all the SDKs of Centrifugo speak.

A frame holds one or more messages, one JSON object per line. A field with a zero value is left out. Source: the
public schema of the protocol (`client.proto`) and the behaviour of its clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import notifications
from notifications.delivery import codes, identity, metrics
from notifications.delivery.codes import Code, CommandError, Disconnect
from notifications.delivery.protocols.schema import (
    Command,
    ConnectRequest,
    HistoryRequest,
    PublicationPush,
    PublishRequest,
    Push,
    RefreshRequest,
    RpcRequest,
    SubscribeRequest,
    TopicRequest,
    method_of,
    publication_of,
)
from notifications.delivery.session import Session
from notifications.delivery.subscription import Recovery, Subscription
from notifications.delivery.tokens import identity_of
from notifications.events import conf
from notifications.events.event import Cursor, EncodedEvent
from notifications.events.topics import MAX_NAME_LENGTH

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command).decode

PING = b"{}"


def _without_zeros(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value or isinstance(value, msgspec.Raw)}


class CentrifugeState:
    """What the protocol remembers of one session."""

    __slots__ = ("connect_seen", "failed")

    def __init__(self) -> None:
        self.connect_seen = False
        self.failed = False


class CentrifugeProtocol:
    """Commands of the Centrifuge protocol as calls on a session."""

    name = "centrifuge"
    answers_pings = True

    def new_state(self) -> CentrifugeState:
        return CentrifugeState()

    def opened(self, session: Session) -> None:
        """Nothing is sent before the client's connect command."""

    def received(self, session: Session, data: bytes | str) -> None:
        if isinstance(data, bytes):
            raise Disconnect(codes.INAPPROPRIATE_PROTOCOL)
        messages = data.strip("\n").split("\n")
        for message in messages:
            if session.closed_with is not None:
                return
            self._received_one(session, message)

    def _received_one(self, session: Session, message: str) -> None:
        if message.strip() == "{}":
            if not session.awaiting_pong:
                raise Disconnect(codes.BAD_FRAME)
            session.switchboard.answered_ping(session)
            return
        try:
            command = _decode(message)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise Disconnect(codes.BAD_FRAME) from error
        method = method_of(command)
        state: CentrifugeState = session.state
        if method is None or state.failed or (command.id < 1 and method != "send"):
            raise Disconnect(codes.BAD_FRAME)
        if (method == "connect") is state.connect_seen:
            raise Disconnect(codes.BAD_FRAME)  # a second connect, or a command before the first
        if method == "send":
            raise Disconnect(codes.NOT_SUPPORTED)
        state.connect_seen = True
        request = getattr(command, method)
        if method == "unsubscribe":
            self._unsubscribe(session, command.id, request)
        elif method == "publish" and session.publishes_in_order(request.channel):
            session.run_beside(self._answer(session, command.id, method, request))
        else:
            session.run(self._answer(session, command.id, method, request))

    async def _answer(self, session: Session, number: int, method: str, request: Any) -> None:
        handler: Callable[[Session, int, Any], Awaitable[None]] = getattr(self, f"_{method}")
        if session.closed_with is not None:
            return
        try:
            await handler(session, number, request)
        except CommandError as error:
            self._reply_error(session, number, error.code)
            if method == "connect":
                session.state.failed = True
        except (Disconnect, asyncio.CancelledError):
            raise
        except Exception:
            # A permission function of a site, say. What the client has besides must not suffer from it.
            logger.exception("the command %s failed", method)
            self._reply_error(session, number, codes.INTERNAL)
            if method == "connect":
                session.state.failed = True

    def _reply(self, session: Session, number: int, method: str, result: dict[str, Any]) -> None:
        session.send(_encode({"id": number, method: result}))

    def _reply_error(self, session: Session, number: int, code: Code) -> None:
        metrics.errors.labels(str(code.code)).inc()
        error = {"code": code.code, "message": code.reason}
        if code.temporary:
            error["temporary"] = True
        session.send(_encode({"id": number, "error": error}))

    # Commands.

    async def _connect(self, session: Session, number: int, request: ConnectRequest) -> None:
        if request.token:
            session.identity = identity_of(request.token)
        elif not session.identity.user and not conf.get("HUB_ALLOW_ANONYMOUS"):
            raise Disconnect(codes.BAD_FRAME)
        # Known to the control plane before the database is asked: what it says may be outdated when it arrives.
        session.switchboard.identified(session)
        names = await identity.server_subscriptions(session.identity, revocations=session.switchboard.revocations)
        if names is None:
            raise Disconnect(codes.NOT_PERMITTED)
        subs: dict[str, Any] = {}
        recoveries = []
        for name in names:
            asked = (request.subs or {}).get(name, SubscribeRequest())
            since = Cursor(asked.offset, asked.epoch) if asked.recover else None
            recovery = await session.subscribe(name, since=since, by_server=True, join_leave=True)
            recoveries.append(recovery)
            subs[name] = self._subscribed(recovery, since)
        if session.closed_with is not None:
            return
        session.connected = True
        ping = conf.get("HUB_PING_SECONDS")
        expires_at = session.identity.expires_at
        result = _without_zeros(
            client=session.id,
            version=notifications.__version__,
            expires=expires_at is not None,
            ttl=max(1, round(expires_at - time.time())) if expires_at is not None else 0,
            ping=ping,
            pong=True,
            subs=subs,
        )
        self._reply(session, number, "connect", result)
        for recovery in recoveries:
            recovery.subscription.release()
        session.switchboard.wheel.add(session, ping)

    async def _subscribe(self, session: Session, number: int, request: SubscribeRequest) -> None:
        _check_name(request.channel)
        if request.type or request.tf is not None:
            raise CommandError(codes.NOT_AVAILABLE)  # maps, polls and filters: to ignore them would send too much
        since = Cursor(request.offset, request.epoch) if request.recover else None
        recovery = await session.subscribe(request.channel, since=since, join_leave=request.join_leave)
        if recovery.recovered is False and request.flag & REJECT_UNRECOVERED:
            session.unsubscribe(request.channel)
            raise CommandError(codes.UNRECOVERABLE_POSITION)
        self._reply(session, number, "subscribe", self._subscribed(recovery, since))
        recovery.subscription.release()

    def _subscribed(self, recovery: Recovery, since: Cursor | None) -> dict[str, Any]:
        kept = recovery.subscription.topic.retention.kept
        position = recovery.position
        # A client that recovers counts on from its own offset while it replays the publications.
        offset = since.offset if since is not None and recovery.recovered else position.offset
        return _without_zeros(
            recoverable=kept,
            positioned=kept,
            epoch=position.epoch,
            offset=offset,
            was_recovering=recovery.recovered is not None,
            recovered=bool(recovery.recovered),
            publications=[publication_of(event) for event in recovery.events],
        )

    def _unsubscribe(self, session: Session, number: int, request: TopicRequest) -> None:
        # Nothing is delivered from now on, even while earlier commands wait: a client that has asked counts every
        # later publication as one too many.
        subscription = session.subscriptions.get(request.channel)
        if subscription is not None and subscription.established:
            session.switchboard.detach(subscription)
        session.run(self._answer(session, number, "unsubscribed_reply", request))

    async def _unsubscribed_reply(self, session: Session, number: int, request: TopicRequest) -> None:
        session.unsubscribe(request.channel)
        self._reply(session, number, "unsubscribe", {})

    async def _publish(self, session: Session, number: int, request: PublishRequest) -> None:
        _check_name(request.channel)
        if request.data is msgspec.UNSET:
            raise CommandError(codes.BAD_REQUEST)
        await session.publish(request.channel, request.data)
        self._reply(session, number, "publish", {})

    async def _presence(self, session: Session, number: int, request: TopicRequest) -> None:
        _check_name(request.channel)
        members = await session.presence(request.channel)
        self._reply(session, number, "presence", {"presence": members})

    async def _presence_stats(self, session: Session, number: int, request: TopicRequest) -> None:
        _check_name(request.channel)
        members = await session.presence(request.channel)
        self._reply(session, number, "presence_stats", presence_stats(members))

    async def _history(self, session: Session, number: int, request: HistoryRequest) -> None:
        _check_name(request.channel)
        if request.limit < -1:
            raise CommandError(codes.BAD_REQUEST)
        page = await session.history(
            request.channel,
            since=request.since.cursor if request.since is not None else None,
            limit=request.limit if request.limit >= 0 else None,
            reverse=request.reverse,
        )
        result = _without_zeros(
            publications=[publication_of(event) for event in page.events],
            epoch=page.position.epoch,
            offset=page.position.offset,
        )
        self._reply(session, number, "history", result)

    async def _sub_refresh(self, session: Session, number: int, request: TopicRequest) -> None:
        raise CommandError(codes.NOT_AVAILABLE)  # no subscription expires by itself

    async def _rpc(self, session: Session, number: int, request: RpcRequest) -> None:
        raise CommandError(codes.METHOD_NOT_FOUND)

    async def _refresh(self, session: Session, number: int, request: RefreshRequest) -> None:
        refreshed = identity_of(request.token)
        if refreshed.user != session.identity.user:
            raise Disconnect(codes.INVALID_TOKEN)
        session.identity = refreshed
        expires_at = refreshed.expires_at
        result = _without_zeros(
            client=session.id,
            version=notifications.__version__,
            expires=expires_at is not None,
            ttl=max(1, round(expires_at - time.time())) if expires_at is not None else 0,
        )
        self._reply(session, number, "refresh", result)

    # What the session tells its client.

    def encode_event(self, event: EncodedEvent) -> bytes:
        return _encode(Push(PublicationPush(event.topic, publication_of(event))))

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes:
        return _encode({"push": {"channel": topic, action: {"info": info}}})

    def encode_ping(self) -> bytes:
        return PING

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        if subscription.by_server and code is codes.UNSUBSCRIBED_INSUFFICIENT_STATE:
            # The SDK resubscribes only what it subscribed itself; a reconnect recovers the others.
            session.disconnect(codes.INSUFFICIENT_STATE)
            return
        unsubscribe = {"code": code.code, "reason": code.reason}
        session.send(_encode({"push": {"channel": subscription.topic.name, "unsubscribe": unsubscribe}}))

    def closing(self, session: Session, code: Code) -> bytes | None:
        return None  # a WebSocket's close frame carries the code


REJECT_UNRECOVERED = 2


def presence_stats(members: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many clients and users are in an answer of presence, without zeros."""
    users = {info.get("user", "") for info in members.values()}
    return _without_zeros(num_clients=len(members), num_users=len(users))


def _check_name(name: str) -> None:
    if not name:
        raise Disconnect(codes.BAD_FRAME)
    if len(name) > MAX_NAME_LENGTH:
        raise CommandError(codes.BAD_REQUEST)


CENTRIFUGE = CentrifugeProtocol()
