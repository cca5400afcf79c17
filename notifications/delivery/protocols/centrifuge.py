"""The Centrifuge client protocol: what the hub's own pages and all the SDKs of Centrifugo speak.

Source: the public schema of the protocol (`client.proto`) and the behaviour of its clients.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw

import notifications
from notifications.delivery import codes, identity, limits, metrics, rpc, tokens
from notifications.delivery.codes import Code, CommandError, Disconnect
from notifications.delivery.protocols import schema
from notifications.delivery.protocols.codecs import PROTOBUF
from notifications.delivery.protocols.pushes import CentrifugePushes, raw, time_left
from notifications.delivery.protocols.schema import (
    ClientInfo,
    Command,
    ConnectRequest,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    Publication,
    PublishRequest,
    RefreshRequest,
    Reply,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    method_of,
    publication_of,
    tags_of,
)
from notifications.delivery.session import Session, UnsubscribedMeanwhile
from notifications.delivery.shared_reads import MissedEvents
from notifications.delivery.signals import client_message
from notifications.delivery.subscription import Recovery
from notifications.delivery.tags_filter import compile_filter, filter_key
from notifications.delivery.variants import Variant
from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.topics import MAX_NAME_LENGTH, ResolvedTopic

logger = logging.getLogger(__name__)

REJECT_UNRECOVERED = 2
FOSSIL = "fossil"


class CentrifugeState:
    """What the protocol remembers of one session."""

    __slots__ = ("connect_seen", "failed", "secret")

    def __init__(self) -> None:
        self.connect_seen = False
        self.failed = False
        #: By which the client of an emulated transport is known when it sends.
        self.secret = ""


class CentrifugeProtocol(CentrifugePushes):
    """Commands of the Centrifuge protocol as calls on a session.

    With `native_pings` the transport's own pings are sent instead of the protocol's. `emulated` is for transports
    that have one direction only: what the client sends comes by requests of its own, and a last push tells the code
    that a WebSocket's close frame would.
    """

    def new_state(self) -> CentrifugeState:
        return CentrifugeState()

    def opened(self, session: Session) -> None:
        """Nothing is sent before the client's connect command."""

    def closed(self, session: Session) -> None:
        if session.state.secret:
            del session.switchboard.emulated[session.state.secret]

    def received(self, session: Session, data: bytes | str) -> None:
        if isinstance(data, bytes) and not self.binary:
            raise Disconnect(codes.INAPPROPRIATE_PROTOCOL)
        try:
            for command in self.codec.commands(data):
                if session.closed_with is not None:
                    return
                self._received_one(session, command)
        except ValueError as error:
            raise Disconnect(codes.BAD_FRAME) from error

    def _received_one(self, session: Session, command: Command) -> None:
        method = method_of(command)
        state: CentrifugeState = session.state
        if method is None and command.id == 0:
            if not session.awaiting_pong:
                raise Disconnect(codes.BAD_FRAME)
            session.switchboard.answered_ping(session)
            return
        if method is None or method == "ping" or state.failed or (command.id < 1 and method != "send"):
            raise Disconnect(codes.BAD_FRAME)
        if (method == "connect") is state.connect_seen:
            raise Disconnect(codes.BAD_FRAME)  # a second connect, or a command before the first
        state.connect_seen = True
        request = getattr(command, method)
        if (refusal := self._refusal(session, request)) is not None:
            state.failed = method == "connect"
            self._reply_error(session, command.id, refusal)
            return
        if method == "publish" and (topic := session.publishes_in_order(request.channel)) is not None:
            self._publish_soon(session, command.id, topic, request)
        elif method == "unsubscribe":
            self._unsubscribe(session, command.id, request)
        else:
            session.run(self._answer(session, command.id, method, request))

    def _refusal(self, session: Session, request: Any) -> Code | None:
        """The code with which a command is refused for what it costs; raises Disconnect when it was told before."""
        session.arrival, refused = limits.count_command(session.arrival, session.switchboard.loop.time())
        if refused is codes.TOO_MANY_REQUESTS:
            raise Disconnect(refused)
        data = getattr(request, "data", UNSET)
        if data is not UNSET and limits.too_deep(bytes(data), limit=conf.get("HUB_MAX_JSON_DEPTH")):
            return codes.BAD_REQUEST
        return refused

    async def _answer(self, session: Session, number: int, method: str, request: Any) -> None:
        handler: Callable[[Session, int, Any], Awaitable[None]] = getattr(self, f"_{method}")
        if session.closed_with is not None:
            return
        if session.state.failed:
            raise Disconnect(codes.BAD_FRAME)  # it came behind a connect that was refused since
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

    def _reply(self, session: Session, reply: Reply) -> None:
        session.send(self.codec.encode(reply))

    def _reply_error(self, session: Session, number: int, code: Code) -> None:
        if number == 0:
            return  # `send` has no answer
        metrics.errors.labels(str(code.code)).inc()
        self._reply(session, Reply(id=number, error=schema.Error(code.code, code.reason, code.temporary)))

    # Connecting.

    async def _connect(self, session: Session, number: int, request: ConnectRequest) -> None:
        if request.token:
            session.identity = await tokens.identify(request.token)
            if session.closed_with is not None:
                return  # while a key was fetched
        elif not session.identity.user and not conf.get("HUB_ALLOW_ANONYMOUS"):
            raise Disconnect(codes.BAD_FRAME)
        switchboard = session.switchboard
        # Known to the control plane before the database is asked: what it says may be outdated when it arrives.
        switchboard.identified(session)
        if (user := session.identity.user) and 0 < conf.get("HUB_MAX_SESSIONS_PER_USER") < len(
            switchboard.sessions_of_user[user]
        ):
            raise Disconnect(codes.CONNECTION_LIMIT)
        names = await identity.server_subscriptions(session.identity, revocations=switchboard.revocations)
        if names is None:
            raise Disconnect(codes.NOT_PERMITTED)
        if len(names) > conf.get("HUB_MAX_SUBSCRIPTIONS"):
            raise Disconnect(codes.TOPIC_LIMIT)
        made = []
        for name in names:
            asked = (request.subs or {}).get(name, SubscribeRequest())
            since = Cursor(asked.offset, asked.epoch) if asked.recover else None
            grant = session.identity.subs.get(name)
            try:
                recovery = await session.subscribe(name, since=since, by_server=True, join_leave=True, grant=grant)
            except UnsubscribedMeanwhile:
                continue  # an error would end the client, for good, for a topic that it lost
            made.append((name, recovery, since))
        # Without those that the server ended while it made the others.
        standing = [each for each in made if session.subscriptions.get(each[0]) is each[1].subscription]
        subs = {name: self._subscribed(recovery, since) for name, recovery, since in standing}
        if session.closed_with is not None:
            return
        session.connected = True
        ping = conf.get("HUB_PING_SECONDS")
        if self.emulated:
            session.state.secret = secrets.token_hex(16)
            switchboard.emulated[session.state.secret] = session
        expires, ttl = time_left(session.identity.expires_at)
        result = schema.ConnectResult(
            client=session.id,
            version=notifications.__version__,
            expires=expires,
            ttl=ttl,
            subs=subs,
            ping=ping if self.answers_pings else 0,
            pong=self.answers_pings,
            session=session.state.secret,
            node=switchboard.node if self.emulated else "",
            time=round(time.time() * 1_000),
        )
        self._reply(session, Reply(id=number, connect=result))
        for _, recovery, _ in standing:
            recovery.subscription.release()
        switchboard.wheel.add(session, ping)
        switchboard.watch_expiry(session)

    async def _refresh(self, session: Session, number: int, request: RefreshRequest) -> None:
        try:
            refreshed = await tokens.identify(request.token)
        except CommandError as error:
            raise Disconnect(codes.EXPIRED) if error.code is codes.TOKEN_EXPIRED else error from error
        if refreshed.user != session.identity.user:
            raise Disconnect(codes.INVALID_TOKEN)
        session.identity = refreshed
        session.switchboard.watch_expiry(session)
        expires, ttl = time_left(refreshed.expires_at)
        result = schema.RefreshResult(session.id, notifications.__version__, expires, ttl)
        self._reply(session, Reply(id=number, refresh=result))

    # Subscribing.

    async def _subscribe(self, session: Session, number: int, request: SubscribeRequest) -> None:
        _check_name(request.channel)
        if request.type:
            raise CommandError(codes.NOT_AVAILABLE)  # maps and polls
        since = Cursor(request.offset, request.epoch) if request.recover else None
        recovery = await session.subscribe(
            request.channel,
            since=since,
            join_leave=request.join_leave,
            token=request.token,
            variant=self._variant(session, request),
        )
        if recovery.recovered is False and request.flag & REJECT_UNRECOVERED:
            session.unsubscribe(request.channel)
            raise CommandError(codes.UNRECOVERABLE_POSITION)
        self._reply(session, Reply(id=number, subscribe=self._subscribed(recovery, since)))
        recovery.subscription.release()

    def _variant(self, session: Session, request: SubscribeRequest) -> Variant | None:
        if request.tf is None and not request.delta:
            return None
        declaration = session.resolved(request.channel).declaration
        if request.tf is not None:
            # Without deltas, whatever was asked: who does not get every event has not what the next one differs from.
            if not declaration.filterable:
                raise CommandError(codes.NOT_AVAILABLE)
            try:
                wanted = compile_filter(request.tf)
            except ValueError as error:
                raise CommandError(codes.BAD_REQUEST, str(error)) from error
            return Variant(accepts=lambda event: wanted(tags_of(event) or {}), filter=filter_key(request.tf))
        if request.delta != FOSSIL:
            raise CommandError(codes.BAD_REQUEST, f"there is no delta {request.delta!r}")
        return Variant(delta=self.encode_delta) if declaration.deltas else None

    def _subscribed(self, recovery: Recovery, since: Cursor | None) -> schema.SubscribeResult:
        subscription, position = recovery.subscription, recovery.position
        kept = subscription.topic.retention.kept
        grant, variant = subscription.grant, subscription.variant
        # A client that recovers counts on from its own offset while it replays the publications.
        replays = since is not None and recovery.recovered and subscription.topic.declaration.recovery == "stream"
        expires, ttl = time_left(None if grant is None else grant.expires_at)
        return schema.SubscribeResult(
            expires=expires,
            ttl=ttl,
            recoverable=kept,
            positioned=kept,
            epoch=position.epoch,
            offset=since.offset if since is not None and replays else position.offset,
            was_recovering=recovery.recovered is not None,
            recovered=bool(recovery.recovered),
            publications=self._publications(recovery.events, variant),
            delta=variant is not None and variant.delta is not None,
            data=UNSET if grant is None or grant.data is None else raw(grant.data),
        )

    def _publications(self, events: MissedEvents, variant: Variant | None) -> list[Publication]:
        if variant is None:
            return events.each("publication", publication_of)
        if variant.delta is None:
            return [publication_of(event) for event in events if variant.accepts(event)]
        bases = [None, *events[:-1]]
        return [self._delta(event, base) for event, base in zip(events, bases, strict=False)]

    def _unsubscribe(self, session: Session, number: int, request: UnsubscribeRequest) -> None:
        # Nothing is delivered from now on, even while earlier commands wait: a client that has asked counts every
        # later publication as one too many.
        subscription = session.subscriptions.get(request.channel)
        if subscription is not None and subscription.established:
            session.switchboard.detach(subscription)
        session.run(self._answer(session, number, "unsubscribed_reply", request))

    async def _unsubscribed_reply(self, session: Session, number: int, request: UnsubscribeRequest) -> None:
        _check_name(request.channel)
        session.unsubscribe(request.channel)
        self._reply(session, Reply(id=number, unsubscribe=schema.UnsubscribeResult()))

    async def _sub_refresh(self, session: Session, number: int, request: SubRefreshRequest) -> None:
        _check_name(request.channel)
        grant = await session.prolong(request.channel, request.token)
        expires, ttl = time_left(grant.expires_at)
        self._reply(session, Reply(id=number, sub_refresh=schema.SubRefreshResult(expires, ttl)))

    # What a client does.

    async def _publish(self, session: Session, number: int, request: PublishRequest) -> None:
        _check_name(request.channel)
        await session.publish(request.channel, _data(request.data))
        self._reply(session, Reply(id=number, publish=schema.PublishResult()))

    def _publish_soon(self, session: Session, number: int, topic: ResolvedTopic, request: PublishRequest) -> None:
        def done(error: CommandError | None) -> None:
            if error is not None:
                self._reply_error(session, number, error.code)
            else:
                self._reply(session, Reply(id=number, publish=schema.PublishResult()))

        try:
            session.publish_soon(topic, _data(request.data), done)
        except CommandError as error:
            done(error)

    async def _presence(self, session: Session, number: int, request: PresenceRequest) -> None:
        _check_name(request.channel)
        members = msgspec.convert(await session.presence(request.channel), dict[str, ClientInfo])
        self._reply(session, Reply(id=number, presence=schema.PresenceResult(members)))

    async def _presence_stats(self, session: Session, number: int, request: PresenceStatsRequest) -> None:
        _check_name(request.channel)
        stats = await session.presence_stats(request.channel)
        self._reply(session, Reply(id=number, presence_stats=schema.PresenceStatsResult(*stats)))

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
        publications = [publication_of(event) for event in page.events]
        result = schema.HistoryResult(publications, page.position.epoch, page.position.offset)
        self._reply(session, Reply(id=number, history=result))

    async def _rpc(self, session: Session, number: int, request: RpcRequest) -> None:
        data = b"null" if request.data is UNSET else bytes(request.data)
        result = await rpc.call(method=request.method, data=data, identity=session.identity, client=session.id)
        self._reply(session, Reply(id=number, rpc=schema.RpcResult(Raw(result))))

    async def _send(self, session: Session, number: int, request: SendRequest) -> None:
        if not client_message.receivers:
            raise Disconnect(codes.NOT_SUPPORTED)
        try:
            data = msgspec.json.decode(_data(request.data))
        except (ValueError, RecursionError) as error:  # nothing has looked into it before
            raise CommandError(codes.BAD_REQUEST, str(error)) from error
        await client_message.asend_robust(sender=None, data=data, identity=session.identity, client=session.id)


def _data(data: schema.Json) -> Raw:
    if data is UNSET or not isinstance(data, Raw) or not bytes(data):
        raise CommandError(codes.BAD_REQUEST, "data is missing")
    return data


def _check_name(name: str) -> None:
    if not name:
        raise Disconnect(codes.BAD_FRAME)
    if len(name) > MAX_NAME_LENGTH:
        raise CommandError(codes.BAD_REQUEST)


CENTRIFUGE = CentrifugeProtocol()
CENTRIFUGE_PROTOBUF = CentrifugeProtocol(PROTOBUF, name="centrifuge-protobuf")
CENTRIFUGE_NATIVE_PINGS = CentrifugeProtocol(native_pings=True)
CENTRIFUGE_PROTOBUF_NATIVE_PINGS = CentrifugeProtocol(PROTOBUF, name="centrifuge-protobuf", native_pings=True)
EMULATED = CentrifugeProtocol(name="centrifuge-emulated", emulated=True)
EMULATED_PROTOBUF = CentrifugeProtocol(PROTOBUF, name="centrifuge-emulated-protobuf", emulated=True)
