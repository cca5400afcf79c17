"""What a client does on topics besides subscribing: publishing, reading what they keep, seeing who is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from notifications.delivery import codes, identity, limits, presence
from notifications.delivery.codes import Code, CommandError, Disconnect
from notifications.delivery.identity import Identity
from notifications.delivery.presence import Stats
from notifications.events import conf
from notifications.events.event import Cursor, EncodedEvent, Sender
from notifications.events.exceptions import HubError, InvalidEvent, LogUnavailable, UnknownTopic
from notifications.events.logs import Page, log_for
from notifications.events.retention import Kind
from notifications.events.services import apublish_encoded, publish_soon
from notifications.events.topics import ResolvedTopic, resolve

if TYPE_CHECKING:
    from notifications.delivery.subscription import Subscription
    from notifications.delivery.switchboard import Switchboard

MAX_WAITING_COMMANDS = 1_000


class ClientActions:
    """The part of a session that acts for its client: it asks what the client may do, and raises CommandError."""

    __slots__ = ("beside",)

    id: str
    identity: Identity
    subscriptions: dict[str, Subscription]
    switchboard: Switchboard
    closed_with: Code | None
    #: Publications under way beside the commands that run one after the other.
    beside: int
    _task: asyncio.Task[None] | None

    def publishes_in_order(self, name: str) -> ResolvedTopic | None:
        """The topic, if this session may publish to it and its publications need not wait for each other.

        So it is where nothing has to be asked first, nothing else is running, and the log appends in the order in
        which it is called; the durable log does so on several threads.
        """
        if self._task is not None or conf.get("HUB_MAX_PUBLISHES_PER_SECOND"):
            return None
        try:
            topic = resolve(name)
            if topic.retention.kind is Kind.DURABLE:
                return None
            if self._subscribers_may(topic, "publish"):
                return topic
            known = self.switchboard.revocations
            return topic if identity.allows_at_hand(self.identity, topic, "publish", revocations=known) else None
        except Exception:  # noqa: BLE001 - also of a site's permission method; the command meets it, and is answered
            return None

    async def publish(self, name: str, data: Any) -> EncodedEvent:
        """Publish on behalf of the client. Raises CommandError with the protocol's code."""
        topic = await self._permitted(name, "publish", "publish")
        rate = conf.get("HUB_MAX_PUBLISHES_PER_SECOND")
        if rate and await limits.wait_for(scope="publish", subject=self.identity.user or self.id, rate=rate):
            raise CommandError(codes.TOO_MANY)
        try:
            return await apublish_encoded(topic.name, topic.declaration.default_type, data, sender=self._sender)
        except InvalidEvent as error:
            raise CommandError(codes.BAD_REQUEST, str(error)) from error
        except LogUnavailable as error:
            raise CommandError(codes.INTERNAL, str(error)) from error

    def publish_soon(self, topic: ResolvedTopic, data: Any, done: Callable[[CommandError | None], None]) -> None:
        """Publish to a topic of `publishes_in_order()` beside other commands; `done` is told of the outcome.

        A task for each publication would cost as much as all that is done in it.
        """
        if self.beside >= MAX_WAITING_COMMANDS:
            raise Disconnect(codes.TOO_MANY_REQUESTS)
        self.beside += 1

        def ended(outcome: object) -> None:
            self.beside -= 1
            if self.closed_with is None:
                failed = isinstance(outcome, Exception)
                done(CommandError(codes.INTERNAL, str(outcome)) if failed else None)

        try:
            publish_soon(topic, data, sender=self._sender, done=ended)
        except InvalidEvent as error:
            self.beside -= 1
            raise CommandError(codes.BAD_REQUEST, str(error)) from error

    @property
    def _sender(self) -> Sender:
        return Sender(self.identity.user, self.id, self.identity.info)

    async def history(self, name: str, *, since: Cursor | None, limit: int | None, reverse: bool) -> Page:
        """Read kept events on behalf of the client. Raises CommandError with the protocol's code."""
        topic = self.resolved(name)
        if not topic.retention.kept:
            raise CommandError(codes.NOT_AVAILABLE)
        await self._permitted(name, "read_history", "history")
        most: int = conf.get("HUB_MAX_HISTORY")
        bounded = most if limit is None else min(limit, most)
        try:
            page = await log_for(topic.retention).aread(topic, since=since, limit=bounded, reverse=reverse)
        except LogUnavailable as error:
            raise CommandError(codes.INTERNAL, str(error)) from error
        if since is not None and since.epoch and since.epoch != page.position.epoch:
            raise CommandError(codes.UNRECOVERABLE_POSITION)
        return page

    async def presence(self, name: str) -> dict[str, dict[str, Any]]:
        """Who is subscribed, on behalf of the client, by client id. Raises CommandError with the protocol's code."""
        await self._may_see_presence(name)
        limit = conf.get("HUB_PRESENCE_MAX_MEMBERS")
        try:
            members = await presence.members(name, limit=limit)
        except LogUnavailable as error:
            raise CommandError(codes.INTERNAL, str(error)) from error
        if members is None:
            raise CommandError(codes.LIMIT_EXCEEDED, f"{name} has more than {limit} subscribers")
        return members

    async def presence_stats(self, name: str) -> Stats:
        """How many are subscribed, on behalf of the client. Raises CommandError with the protocol's code."""
        await self._may_see_presence(name)
        try:
            return await presence.stats(name)
        except LogUnavailable as error:
            raise CommandError(codes.INTERNAL, str(error)) from error

    async def _may_see_presence(self, name: str) -> None:
        if not self.resolved(name).declaration.presence:
            raise CommandError(codes.NOT_AVAILABLE)
        await self._permitted(name, "see_presence", "presence")

    async def _allows(self, topic: ResolvedTopic, action: str) -> bool:
        return await identity.allows(self.identity, topic, action, revocations=self.switchboard.revocations)

    async def _permitted(self, name: str, action: str, subscribers_action: str) -> ResolvedTopic:
        topic = self.resolved(name)
        if self._subscribers_may(topic, subscribers_action):
            return topic
        if not await self._allows(topic, action):
            raise CommandError(codes.PERMISSION_DENIED)
        return topic

    def _subscribers_may(self, topic: ResolvedTopic, action: str) -> bool:
        subscription = self.subscriptions.get(topic.name)
        return subscription is not None and subscription.established and action in topic.declaration.subscribers_may

    def resolved(self, name: str) -> ResolvedTopic:
        """The topic called `name`. Raises CommandError with the protocol's code."""
        try:
            return resolve(name)
        except UnknownTopic as error:
            raise CommandError(codes.UNKNOWN_TOPIC) from error
        except HubError as error:
            raise CommandError(codes.BAD_REQUEST, str(error)) from error

    @property
    def client_info(self) -> dict[str, Any]:
        """The session as other clients see it in presence, joins and publications."""
        info: dict[str, Any] = {"user": self.identity.user, "client": self.id}
        if self.identity.info is not None:
            info["conn_info"] = self.identity.info
        return info
