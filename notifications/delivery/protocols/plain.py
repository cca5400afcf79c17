"""The plain JSON protocol of the Channels tutorial, on one topic: a page with ten lines of JavaScript speaks it.

On connect the client gets `{"type": "connection_established", "message": …}`; it sends `{"message": "hi"}`, and
everybody on the topic gets `{"type": "chat", "message": "hi", …}` with the author, the time and the offset.

Who connects again with `?since=<epoch>:<offset>`, the epoch of the last `connection_established` and the newest offset
that came, gets what was missed, and after it `{"type": "resumed", "complete": true}`, or false when it was not all.
"""

from __future__ import annotations

from typing import Any

import msgspec

from notifications.delivery import codes, limits
from notifications.delivery.codes import Code, CommandError, Disconnect
from notifications.delivery.protocols.base import AskedTopicsOnly
from notifications.delivery.session import Session
from notifications.delivery.subscription import Recovery, Subscription
from notifications.events import conf
from notifications.events.event import Cursor, EncodedEvent

_encode = msgspec.json.Encoder().encode


class PlainState:
    """What the protocol remembers of one session: its one topic, the greeting, and what it resumes from."""

    __slots__ = ("greeting", "resumes", "since", "topic")

    def __init__(self) -> None:
        self.topic = ""
        self.greeting = ""
        self.resumes = False
        # None where the client did not say it in a way that means anything.
        self.since: Cursor | None = None


class PlainProtocol(AskedTopicsOnly):
    """Objects of JSON in both directions, without ids or acknowledgements."""

    name = "plain"
    answers_pings = False

    def new_state(self) -> PlainState:
        return PlainState()

    def opened(self, session: Session) -> None:
        session.run(self._subscribe(session))

    async def _subscribe(self, session: Session) -> None:
        state: PlainState = session.state
        session.switchboard.identified(session)
        try:
            recovery = await session.subscribe(state.topic, since=state.since)
        except CommandError as error:
            raise Disconnect(codes.of_error(error.code)) from error
        session.connected = True
        session.send(_encode(self._greeting(state, recovery)))
        for frame in recovery.events.each(session.encoding, session.encoding.frame):
            session.send_frame(frame)
        if state.resumes:
            session.send(_encode({"type": "resumed", "complete": recovery.recovered is True}))
        recovery.subscription.release()

    def _greeting(self, state: PlainState, recovery: Recovery) -> dict[str, Any]:
        greeting: dict[str, Any] = {"type": "connection_established", "message": state.greeting}
        if recovery.subscription.topic.retention.kept:
            # Not the position where it goes live: a socket cut during the replay resumes within it.
            start = state.since if state.since is not None and recovery.recovered else recovery.position
            greeting |= {"epoch": recovery.position.epoch, "offset": start.offset}
        return greeting

    def received(self, session: Session, data: bytes | str) -> None:
        session.arrival, refused = limits.count_command(session.arrival, session.switchboard.loop.time())
        if refused is codes.TOO_MANY_REQUESTS:
            raise Disconnect(refused)
        if refused is not None:
            self._refuse(session, refused.reason)
            return
        session.run(self._publish(session, data))

    async def _publish(self, session: Session, data: bytes | str) -> None:
        state: PlainState = session.state
        try:
            if limits.too_deep(data, limit=conf.get("HUB_MAX_JSON_DEPTH")):
                raise CommandError(codes.BAD_REQUEST, "that is nested too deep")
            message = msgspec.json.decode(data, type=dict[str, Any])
            await session.publish(state.topic, message)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self._refuse(session, 'send an object of JSON such as {"message": "hi"}')
        except CommandError as error:
            self._refuse(session, error.detail or error.code.reason)

    def _refuse(self, session: Session, reason: str) -> None:
        session.send(_encode({"type": "error", "message": reason}))

    def encode_event(self, event: EncodedEvent) -> bytes:
        data = msgspec.json.decode(event.data)
        info = event.sender.info if event.sender is not None else None
        author = info.get("name") if isinstance(info, dict) else None
        body = data if isinstance(data, dict) else {"data": data}
        return _encode({**body, "type": "chat", "author": author, "time": event.time, "offset": event.offset})

    def encode_presence(self, topic: str, action: str, info: dict[str, Any]) -> bytes | None:
        return None

    def encode_ping(self) -> bytes | None:
        return None

    def unsubscribed(self, session: Session, subscription: Subscription, code: Code) -> None:
        # There is nothing but the one subscription. Whoever missed events connects again, and is told.
        lost = code is codes.UNSUBSCRIBED_INSUFFICIENT_STATE
        session.disconnect(codes.INSUFFICIENT_STATE if lost else codes.NOT_PERMITTED)

    def closing(self, session: Session, code: Code) -> bytes | None:
        return None


PLAIN = PlainProtocol()
