"""What an event may cost on its way to the browsers, counted: no noise of a machine can blur these."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from pytest_django import Settings

from notifications.delivery import codes
from notifications.delivery.audience import PART_SESSIONS, REMEMBERED_FROM
from notifications.delivery.frames import Encoding, Framing, websocket_text
from notifications.delivery.protocols.centrifuge import CentrifugeProtocol
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events import apublish
from notifications.events.event import EncodedEvent, at_position, new_event
from notifications.events.threads import executor

SUBSCRIBE = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:1"}}'


class CountingProtocol(CentrifugeProtocol):
    """The Centrifuge protocol, which counts how often it encodes an event."""

    name = "counting"
    encoded = 0

    def encode_event(self, event: EncodedEvent) -> bytes:
        self.encoded += 1
        return super().encode_event(event)


class CountingStream:
    """What the server class lends a session while its client keeps up."""

    def __init__(self, transport: CountingTransport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._transport.writes.append([data])


class CountingTransport:
    """Keeps each write, as a socket would get it."""

    framing: Framing = staticmethod(websocket_text)
    congested = False

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []
        self.stream = CountingStream(self)
        self.waiting = 0

    def write(self, frames: list[bytes]) -> None:
        self.writes.append(list(frames))

    def got(self, method: str) -> dict[str, Any] | None:
        """The reply to a command, when it was written."""
        replies = [message[method] for write in self.writes for message in messages(write) if method in message]
        return replies[0] if replies else None

    def pending(self) -> int:
        return self.waiting

    def ping(self) -> None:
        """Nobody listens."""

    def close(self, code: Any) -> None:
        """There is nothing to close."""


@pytest.fixture
async def switchboard(settings: Settings) -> AsyncIterator[Switchboard]:
    settings.HUB_SOCKET = ""
    yield await current_switchboard()
    await stop_current()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def subscribed(
    switchboard: Switchboard, number: int, *, already: int = 0
) -> tuple[CountingProtocol, list[CountingTransport]]:
    """So many sessions, beside some, that are subscribed to open:1, and whose replies are written and forgotten."""
    protocol, transports = CountingProtocol(), []
    encoding = None
    for _ in range(number):
        transport = CountingTransport()
        session = Session(switchboard, protocol, transport)
        # Encodings are shared by the name of the protocol; this one counts for this test only.
        encoding = encoding or type(session.encoding)(protocol, transport.framing)
        session.encoding = encoding
        session.use_stream(transport.stream)
        session.opened()
        session.feed(SUBSCRIBE)
        transports.append(transport)
    await until(lambda: all(transport.got("subscribe") for transport in transports))
    await until(lambda: len(switchboard.topics["open:1"].ready) == already + number)
    for transport in transports:
        transport.writes.clear()
    return protocol, transports


def messages(write: list[bytes]) -> list[dict[str, Any]]:
    """The messages in one write, its frames taken apart."""
    found, joined = [], b"".join(write)
    while joined:
        length, start = (joined[1], 2) if joined[1] < 126 else (int.from_bytes(joined[2:4], "big"), 4)
        found.append(msgspec.json.decode(joined[start : start + length]))
        joined = joined[start + length :]
    return found


def publications(write: list[bytes]) -> list[Any]:
    """The data of the publications in one write."""
    return [message["push"]["pub"]["data"] for message in messages(write) if "pub" in message.get("push", {})]


async def test_events_of_one_turn_are_one_write_per_session(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3)

    await asyncio.gather(*(apublish("open:1", "message", number) for number in range(8)))
    await until(lambda: all(transport.writes for transport in transports))

    assert [[publications(write) for write in transport.writes] for transport in transports] == [[list(range(8))]] * 3


async def test_an_event_is_encoded_once_and_its_bytes_are_shared(switchboard: Switchboard) -> None:
    protocol, transports = await subscribed(switchboard, 20)

    await apublish("open:1", "message", {"text": "once"})
    await until(lambda: all(transport.writes for transport in transports))

    assert protocol.encoded == 1
    assert len({id(transport.writes[0][0]) for transport in transports}) == 1


def pending_timers() -> int:
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not timer.cancelled() for timer in scheduled)


async def test_an_event_that_somebody_does_not_get_is_encoded_once_as_well(switchboard: Switchboard) -> None:
    protocol, transports = await subscribed(switchboard, 20)
    excluded, *others = switchboard.topics["open:1"].ready

    await apublish("open:1", "message", "not to its author", exclude=excluded.id)
    await until(lambda: sum(bool(transport.writes) for transport in transports) == len(others))

    assert protocol.encoded == 1
    assert excluded.transport.writes == []  # type: ignore[attr-defined]


async def test_idle_sessions_have_no_task_and_no_timer_of_their_own(switchboard: Switchboard) -> None:
    await subscribed(switchboard, 1)
    await asyncio.sleep(0)
    tasks = len(asyncio.all_tasks())
    timers = pending_timers()

    transports = [CountingTransport() for _ in range(49)]
    for transport in transports:
        session = Session(switchboard, CountingProtocol(), transport)
        session.opened()
        session.feed(SUBSCRIBE)
    await until(lambda: all(transport.got("subscribe") for transport in transports))
    await until(lambda: len(asyncio.all_tasks()) <= tasks and pending_timers() <= timers)

    assert len(switchboard.sessions) == 50


async def test_connecting_subscribing_and_delivering_need_no_query_and_no_thread(switchboard: Switchboard) -> None:
    # No mark for the database: a query in this thread would fail the test, and any other needs a thread of a pool.
    _, transports = await subscribed(switchboard, 5)

    await apublish("open:1", "message", 1)
    await until(lambda: all(transport.writes for transport in transports))

    assert [len(executor(purpose)._threads) for purpose in ("database", "log")] == [0, 0]


async def test_ten_thousand_writes_do_not_hold_up_the_loop(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3 * PART_SESSIONS)
    written_when_asked: list[int] = []

    def look() -> None:
        written = sum(bool(transport.writes) for transport in transports)
        written_when_asked.append(written)
        if written < len(transports):
            asyncio.get_running_loop().call_soon(look)

    await apublish("open:1", "message", 1)
    look()
    await until(lambda: written_when_asked[-1] == len(transports))

    assert {PART_SESSIONS, 2 * PART_SESSIONS} <= set(written_when_asked)


async def test_a_second_event_overtakes_no_first_one_in_another_slice(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 2 * PART_SESSIONS)

    await apublish("open:1", "message", 1)
    await until(lambda: transports[0].writes)
    await apublish("open:1", "message", 2)
    await until(lambda: all(sum(map(len, map(publications, transport.writes))) == 2 for transport in transports))

    got = {tuple(data for write in transport.writes for data in publications(write)) for transport in transports}
    assert got == {(1, 2)}


async def test_what_a_session_is_sent_besides_goes_with_the_events_of_its_turn(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3)
    live = switchboard.topics["open:1"]
    asking = list(live.ready)[1]
    assert live.position is not None
    event = new_event(topic="open:1", type="message", data="event")

    asking.send(b'{"answer":1}')
    live.arrived(at_position(event, offset=1, epoch=live.position.epoch))
    asking.send(b'{"answer":2}')
    await until(lambda: all(transport.writes for transport in transports))

    (write,) = transports[1].writes
    assert [message.get("answer", "event") for message in messages(write)] == [1, 2, "event"]
    assert [len(transport.writes) for transport in transports] == [1, 1, 1]


async def test_ten_thousand_writes_do_not_hold_up_an_answer_to_somebody_else(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 4 * PART_SESSIONS)
    elsewhere = CountingTransport()
    session = Session(switchboard, CountingProtocol(), elsewhere)
    session.opened()

    await apublish("open:1", "message", 1)
    await until(lambda: transports[0].writes)
    session.send(b'{"answer":1}')
    await until(lambda: elsewhere.writes)

    assert transports[-1].writes == []
    await until(lambda: all(transport.writes for transport in transports))


async def test_an_answer_overtakes_no_event_that_is_on_its_way_to_the_same_session(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3 * PART_SESSIONS)
    last = list(switchboard.topics["open:1"].ready)[-1]

    await apublish("open:1", "message", "event")
    await until(lambda: transports[0].writes)
    last.send(b'{"answer":1}')
    await until(lambda: len(transports[-1].writes) == 2)

    first, second = transports[-1].writes
    assert publications(first) == ["event"]
    assert messages(second) == [{"answer": 1}]


async def test_who_comes_back_while_an_event_is_on_its_way_gets_it_once(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3 * PART_SESSIONS)
    live, transport = switchboard.topics["open:1"], transports[-1]
    last = list(live.ready)[-1]

    event = await apublish("open:1", "message", "event")
    await until(lambda: transports[0].writes)
    last.feed('{"id":3,"unsubscribe":{"channel":"open:1"}}')
    since = f'"recover":true,"offset":{event.offset - 1},"epoch":"{event.epoch}"'  # type: ignore[operator]
    last.feed('{"id":4,"subscribe":{"channel":"open:1",' + since + "}}")
    await until(lambda: transport.got("subscribe"))
    await apublish("open:1", "message", "next")
    await until(lambda: all("next" in publications(found.writes[-1]) for found in transports if found.writes))

    reply = transport.got("subscribe")
    assert reply is not None
    recovered = [publication["data"] for publication in reply["publications"]]
    assert recovered + [data for write in transport.writes for data in publications(write)] == ["event", "next"]


async def test_who_subscribes_within_a_turn_gets_nothing_twice(switchboard: Switchboard) -> None:
    _, (first,) = await subscribed(switchboard, 1)
    second = CountingTransport()
    session = Session(switchboard, CountingProtocol(), second)
    session.opened()

    session.feed(SUBSCRIBE)
    await asyncio.gather(*(apublish("open:1", "message", number) for number in range(20)))
    await apublish("open:1", "message", "last")
    await until(lambda: any("last" in publications(write) for write in first.writes))
    await until(lambda: any("last" in publications(write) for write in second.writes))

    reply = second.got("subscribe")
    pushes = [message["push"] for write in second.writes for message in messages(write) if "push" in message]
    assert reply is not None
    assert [push["pub"]["offset"] for push in pushes if "pub" in push] == list(range(reply.get("offset", 0) + 1, 22))


class LookedAtSession(Session):
    """A session that counts how often a fan-out looks at it."""

    __slots__ = ("looks",)

    @property
    def encoding(self) -> Encoding:  # type: ignore[override]
        self.looks = getattr(self, "looks", 0) + 1
        return Session.encoding.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @encoding.setter
    def encoding(self, encoding: Encoding) -> None:
        Session.encoding.__set__(self, encoding)  # type: ignore[attr-defined]


def leaves(session: Session) -> None:
    session.feed('{"id":3,"unsubscribe":{"channel":"open:1"}}')


def falls_behind(session: Session) -> None:
    session.use_stream(None)


async def test_who_comes_between_two_events_gets_the_second(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, REMEMBERED_FROM)
    await apublish("open:1", "message", "first")
    await until(lambda: all(transport.writes for transport in transports))

    _, (newcomer,) = await subscribed(switchboard, 1, already=REMEMBERED_FROM)
    await apublish("open:1", "message", "second")
    await until(lambda: all(publications(transport.writes[-1]) == ["second"] for transport in transports))

    assert [publications(write) for write in newcomer.writes] == [["second"]]


@pytest.mark.parametrize("changes", [leaves, falls_behind])
async def test_a_fan_out_looks_at_no_session_until_an_audience_changes(
    switchboard: Switchboard, changes: Callable[[Session], None]
) -> None:
    _, transports = await subscribed(switchboard, REMEMBERED_FROM)
    transport = CountingTransport()
    looked_at = LookedAtSession(switchboard, CountingProtocol(), transport)
    looked_at.use_stream(transport.stream)
    looked_at.opened()
    looked_at.feed(SUBSCRIBE)
    await until(lambda: transport.got("subscribe"))

    async def looks_for(event: str) -> int:
        before = looked_at.looks
        await apublish("open:1", "message", event)
        await until(lambda: event in publications(transport.writes[-1]))
        return looked_at.looks - before

    await looks_for("first")
    remembered = await looks_for("second")
    changes(next(iter(switchboard.topics["open:1"].ready)))
    changed = await looks_for("third")
    anew = await looks_for("fourth")

    assert (remembered, changed > 0, anew) == (0, True, 0)
    assert all(publications(transport.writes[0]) == ["first"] for transport in transports)


async def test_who_takes_nothing_any_more_is_closed_and_the_others_get_everything(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, REMEMBERED_FROM + 1)
    slow, *others = switchboard.topics["open:1"].ready
    stalled, *taking = transports
    await apublish("open:1", "message", 1)
    await until(lambda: all(transport.writes for transport in transports))

    stalled.congested = True
    stalled.waiting = switchboard.max_outgoing_bytes
    slow.use_stream(None)
    await apublish("open:1", "message", "x" * 1_000)
    await until(lambda: all(len(transport.writes) == 2 for transport in transports))
    stalled.waiting = 2 * switchboard.max_outgoing_bytes
    await apublish("open:1", "message", 3)
    await until(lambda: all(len(transport.writes) == 3 for transport in taking))

    assert slow.closed_with == codes.SLOW
    assert len(stalled.writes) == 2
    assert [session.closed_with for session in others] == [None] * REMEMBERED_FROM


async def test_who_is_closed_while_an_event_is_on_its_way_is_sent_nothing_after_it(switchboard: Switchboard) -> None:
    _, transports = await subscribed(switchboard, 3 * PART_SESSIONS)
    last = list(switchboard.topics["open:1"].ready)[-1]

    await apublish("open:1", "message", "event")
    await until(lambda: transports[0].writes)
    last.disconnect(codes.SHUTDOWN)
    await until(lambda: all(transport.writes for transport in transports[:-1]))

    assert transports[-1].writes == []


class FailingStream(CountingStream):
    """A stream that has a defect."""

    def write(self, data: bytes) -> None:
        if b'"pub"' in data:
            raise RuntimeError("a defect")
        super().write(data)


class FailingTransport(CountingTransport):
    """A transport that has a defect."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = FailingStream(self)

    def write(self, frames: list[bytes]) -> None:
        if any(b'"pub"' in frame for frame in frames):
            raise RuntimeError("a defect")
        super().write(frames)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_session_that_cannot_be_written_to_stops_no_other(switchboard: Switchboard, streaming: bool) -> None:
    _, transports = await subscribed(switchboard, 3)
    await apublish("open:1", "message", 1)
    await until(lambda: all(transport.writes for transport in transports))
    first, failing, third = switchboard.topics["open:1"].ready
    failing.transport = transport = FailingTransport()
    failing.use_stream(transport.stream if streaming else None)

    await apublish("open:1", "message", 2)
    await until(lambda: len(transports[2].writes) == 2)
    await apublish("open:1", "message", 3)
    await until(lambda: len(transports[2].writes) == 3)

    assert [len(transport.writes) for transport in transports] == [3, 1, 3]
    assert (first.closed_with, failing.closed_with, third.closed_with) == (None, codes.SERVER_ERROR, None)


class PoisonedProtocol(CountingProtocol):
    """A protocol that cannot encode one event."""

    name = "poisoned"

    def encode_event(self, event: EncodedEvent) -> bytes:
        if bytes(event.data) == b'"poison"':
            raise ValueError("a defect")
        return super().encode_event(event)


async def test_subscribers_are_told_of_an_event_that_could_not_be_encoded(switchboard: Switchboard) -> None:
    transport = CountingTransport()
    session = Session(switchboard, PoisonedProtocol(), transport)
    session.opened()
    session.feed(SUBSCRIBE)
    await until(lambda: transport.got("subscribe"))

    await apublish("open:1", "message", "poison")
    await until(lambda: b'"unsubscribe":{"code":2500' in b"".join(map(b"".join, transport.writes)))
    session.feed('{"id":3,"subscribe":{"channel":"open:1"}}')
    await apublish("open:1", "message", "after")
    await until(lambda: any("after" in publications(write) for write in transport.writes))

    assert "open:1" in session.subscriptions


async def test_an_encoding_that_fails_leaves_nobody_mute(switchboard: Switchboard) -> None:
    _, (healthy,) = await subscribed(switchboard, 1)
    poisoned = CountingTransport()
    session = Session(switchboard, PoisonedProtocol(), poisoned)
    session.opened()
    session.feed(SUBSCRIBE)
    await until(lambda: poisoned.got("subscribe"))
    healthy.writes.clear()

    await apublish("open:1", "message", "poison")
    await until(lambda: b'"unsubscribe":{"code":2500' in b"".join(map(b"".join, healthy.writes)))

    assert all(not known.outgoing for known in switchboard.sessions.values())


async def test_an_offset_on_a_topic_that_keeps_nothing_here_is_of_no_matter(switchboard: Switchboard) -> None:
    transport = CountingTransport()
    session = Session(switchboard, CountingProtocol(), transport)
    session.opened()
    session.feed(SUBSCRIBE.replace("open:1", "fleeting:1"))
    await until(lambda: transport.got("subscribe") == {})
    event = new_event(topic="fleeting:1", type="message", data="kept elsewhere")

    for offset in (7, 9):
        switchboard.topics["fleeting:1"].arrived(at_position(event, offset=offset, epoch="other"))
    await until(lambda: sum(map(len, map(publications, transport.writes))) == 2)

    assert switchboard.topics["fleeting:1"].pending == []
