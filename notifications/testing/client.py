"""A client of the Centrifuge protocol in the process of the test: no socket, the same sessions and frames."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec

from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, unframed
from notifications.delivery.identity import ANONYMOUS, Identity, auth_hash_of
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.session import Session
from notifications.delivery.switchboard import current_switchboard
from notifications.events import Cursor
from notifications.events.topics import sender_of

TIMEOUT_SECONDS = 5.0


class ErrorReply(Exception):
    """The hub answered a command with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class MemoryTransport:
    """Keeps what a session writes, for the test to read."""

    framing: Framing = staticmethod(unframed)

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed: asyncio.Future[Code] = asyncio.get_running_loop().create_future()

    def write(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.messages.put_nowait(msgspec.json.decode(frame))

    congested = False

    def pending(self) -> int:
        return 0

    def ping(self) -> None:
        """Nobody listens."""

    def close(self, code: Code) -> None:
        self.closed.set_result(code)


class HubClient:
    """One connected client. Replies and pushes are told apart; pushes wait until they are asked for."""

    def __init__(self, session: Session, transport: MemoryTransport) -> None:
        self.session = session
        self.transport = transport
        self._ids = itertools.count(1)
        self._pushes: list[dict[str, Any]] = []
        #: What `connect` was answered with.
        self.connect_result: dict[str, Any] = {}

    @classmethod
    async def opened(cls, user: Any = None) -> HubClient:
        """A client of a Django user, or a visitor, that has not sent `connect` yet."""
        identity = ANONYMOUS
        if user is not None:
            identity = Identity(user=str(user.pk), info=sender_of(user).info, auth_hash=auth_hash_of(user))
        transport = MemoryTransport()
        session = Session(await current_switchboard(), CENTRIFUGE, transport, identity)
        session.opened()
        return cls(session, transport)

    @classmethod
    async def connected(cls, user: Any = None, *, token: str = "") -> HubClient:
        """A client that is connected as a Django user, with a token, or as a visitor."""
        client = await cls.opened(user)
        client.connect_result = await client.command("connect", **({"token": token} if token else {}))
        return client

    def send(self, method: str, /, **request: Any) -> int:
        """Send a command and wait for nothing; returns its id."""
        number = next(self._ids)
        self.session.feed(msgspec.json.encode({"id": number, method: request}).decode())
        return number

    async def answer(self, method: str, /, **request: Any) -> dict[str, Any]:
        """Send a command and return the result, or the error, that the hub answers with."""
        number = self.send(method, **request)
        while (message := await self._next_message()).get("id") != number:
            self._pushes.append(message)
        answered: dict[str, Any] = message["error"] if "error" in message else message[method]
        return answered

    async def command(self, method: str, /, **request: Any) -> dict[str, Any]:
        """Send a command and return its result. Raises ErrorReply when the hub answers with an error."""
        answered = await self.answer(method, **request)
        if answered.keys() >= {"code", "message"}:
            raise ErrorReply(answered["code"], answered["message"])
        return answered

    async def subscribe(self, topic: str, *, since: Cursor | None = None, **request: Any) -> dict[str, Any]:
        """Subscribe, with recovery when `since` is given."""
        if since is not None:
            request |= {"recover": True, "offset": since.offset, "epoch": since.epoch}
        return await self.command("subscribe", channel=topic, **request)

    async def publish(self, topic: str, data: Any) -> None:
        """Publish as this client."""
        await self.command("publish", channel=topic, data=data)

    async def next_push(self) -> dict[str, Any]:
        """The next push. Raises TimeoutError when none comes."""
        if self._pushes:
            message = self._pushes.pop(0)
        else:
            message = await self._next_message()
        push: dict[str, Any] = message["push"]
        return push

    async def next_publication(self, topic: str) -> dict[str, Any]:
        """The next publication on a topic; other pushes before it are passed over."""
        while True:
            push = await self.next_push()
            if push.get("channel") == topic and "pub" in push:
                publication: dict[str, Any] = push["pub"]
                return publication

    async def _next_message(self) -> dict[str, Any]:
        while (message := await asyncio.wait_for(self.transport.messages.get(), TIMEOUT_SECONDS)) == {}:
            self.session.feed("{}")  # the answer to a ping
        return message

    async def closed_by_hub(self) -> Code:
        """The code with which the hub closes this client. Raises TimeoutError when it does not."""
        return await asyncio.wait_for(asyncio.shield(self.transport.closed), TIMEOUT_SECONDS)

    @property
    def open(self) -> bool:
        """Whether the hub has not closed this client."""
        return not self.transport.closed.done()

    def close(self) -> None:
        """Go away, as a closed socket does."""
        self.session.closed()
