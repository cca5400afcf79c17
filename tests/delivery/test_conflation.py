"""Topics that conflate: who does not keep up gets the newest event per key, in order; nobody else is concerned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from centrifuge import fossil
from pytest_django import Settings

from notifications.delivery import codes
from notifications.delivery.conflation import BEHIND_BYTES
from notifications.delivery.frames import Framing, websocket_text
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard, current_switchboard
from notifications.delivery.transports import AsgiWebSocketTransport
from notifications.events import Cursor, Topic, apublish, window
from notifications.events.event import new_event
from notifications.events.topics import registry
from notifications.testing.client import HubClient, MemoryTransport
from tests.delivery.test_hot_path import messages

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]
FILLER = "x" * 30_000
# Of which none is a small delta to the one before it.
FILLERS = [FILLER, "y" * 30_000, "z" * 30_000]


class Prices(Topic):
    """Of each share the newest price is of interest."""

    pattern = "prices:<name>"
    retention = window(size=1_000, seconds=300)
    presence = join_leave = True
    deltas = filterable = conflates = True
    asks_only_identity = True

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True


class Glimpses(Prices):
    """The same without a log."""

    pattern = "glimpses:<name>"
    retention = Topic.retention
    asks_only_identity = True


class SlowTransport(MemoryTransport):
    """A peer that takes nothing while it is `stalled`."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled = False
        self.unsent: list[bytes] = []
        self.most = 0

    @property
    def congested(self) -> bool:  # type: ignore[override]
        return self.pending() > 0

    def write(self, frames: list[bytes]) -> None:
        self.unsent += frames
        self.most = max(self.most, self.pending())
        if not self.stalled:
            self.read_on()

    def pending(self) -> int:
        return sum(map(len, self.unsent))

    def read_on(self) -> None:
        """Take all that was written, and what is written from now on."""
        self.stalled = False
        taken, self.unsent = self.unsent, []
        super().write(taken)


class SlowSocket(SlowTransport):
    """The same with the frames of a WebSocket, which are joined."""

    framing: Framing = staticmethod(websocket_text)

    def read_on(self) -> None:
        self.stalled = False
        taken, self.unsent = self.unsent, []
        for message in messages(taken) if taken else []:
            self.messages.put_nowait(message)


@pytest.fixture(autouse=True)
def _declared(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    for declaration in (Prices, Glimpses):
        registry.register(declaration)
    yield
    for declaration in (Prices, Glimpses):
        registry.unregister(declaration)


@pytest.fixture(params=[SlowTransport, SlowSocket])
async def slow(request: pytest.FixtureRequest, hub_client: Connect) -> AsyncIterator[HubClient]:
    """A client whose transport can stall."""
    transport = request.param()
    session = Session(await current_switchboard(), CENTRIFUGE, transport)
    session.opened()
    client = HubClient(session, transport)
    await client.command("connect")
    yield client
    client.close()


@pytest.fixture
async def reader(hub_client: Connect) -> HubClient:
    """A client that keeps up."""
    return await hub_client()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def stall(client: HubClient, topic: str) -> None:
    """Let a client stop reading, and publish so much that it falls behind."""
    client.transport.stalled = True  # type: ignore[attr-defined]
    for filler in FILLERS:
        await apublish(topic, "message", filler, key="filler")
    await until(lambda: client.transport.pending() > BEHIND_BYTES)


async def caught_up(client: HubClient, topic: str) -> list[tuple[int, str, Any]]:
    """Let a client read on: offset, key and data of all that it gets until the event that is published last."""
    await until(lambda: "last" in kept(client.session, topic))
    client.transport.read_on()  # type: ignore[attr-defined]
    received: list[tuple[int, str, Any]] = []
    while not received or received[-1][2] != "last":
        message = await asyncio.wait_for(client.transport.messages.get(), 5)
        publication = message.get("push", {}).get("pub")
        if publication is not None and publication["data"] not in FILLERS:
            key = publication.get("tags", {}).get("key", "")
            received.append((publication.get("offset", 0), key, publication["data"]))
    return received


def kept(session: Session, topic: str) -> list[Any]:
    """The data of what is kept for a session."""
    switchboard = session.switchboard
    found = switchboard.conflation._behind.get(session)
    newest = found.kept.get(switchboard.topics[topic], {}) if found else {}  # type: ignore[call-overload]
    return [msgspec.json.decode(event.data) for event in newest.values()]


def behind(switchboard: Switchboard) -> int:
    return len(switchboard.conflation._behind)


async def test_who_is_behind_gets_the_newest_per_key_in_order(slow: HubClient, reader: HubClient) -> None:
    for client in (slow, reader):
        await client.subscribe("prices:1")
    await stall(slow, "prices:1")

    for number in range(100):
        await apublish("prices:1", "message", number, key=f"share {number % 3}")
    await apublish("prices:1", "message", "last")
    everything = [await reader.next_publication("prices:1") for _ in range(104)]
    newest = await caught_up(slow, "prices:1")

    assert [publication["offset"] for publication in everything] == list(range(1, 105))
    assert newest == [(101, "share 1", 97), (102, "share 2", 98), (103, "share 0", 99), (104, "", "last")]


async def test_who_has_caught_up_gets_every_event_again(slow: HubClient, reader: HubClient) -> None:
    for client in (slow, reader):
        await client.subscribe("prices:1")
    await stall(slow, "prices:1")
    await apublish("prices:1", "message", "last")
    await caught_up(slow, "prices:1")

    for number in range(5):
        await apublish("prices:1", "message", number, key="share")

    assert [(await slow.next_publication("prices:1"))["data"] for _ in range(5)] == list(range(5))
    assert behind(await current_switchboard()) == 0


async def test_who_keeps_up_gets_every_event(slow: HubClient) -> None:
    await slow.subscribe("prices:1")

    await asyncio.gather(*(apublish("prices:1", "message", number, key="share") for number in range(200)))

    assert [(await slow.next_publication("prices:1"))["data"] for _ in range(200)] == list(range(200))


async def test_events_without_an_offset_are_conflated_as_well(slow: HubClient) -> None:
    await slow.subscribe("glimpses:1")
    await stall(slow, "glimpses:1")

    for number in range(50):
        await apublish("glimpses:1", "message", number, key=f"share {number % 2}")
    await apublish("glimpses:1", "message", "last")

    assert await caught_up(slow, "glimpses:1") == [(0, "share 0", 48), (0, "share 1", 49), (0, "", "last")]


async def test_a_client_that_never_reads_holds_little_and_stays(slow: HubClient, reader: HubClient) -> None:
    for client in (slow, reader):
        await client.subscribe("prices:1")
    slow.transport.stalled = True  # type: ignore[attr-defined]

    for number in range(200):
        await apublish("prices:1", "message", f"{number} {FILLER}", key=f"share {number % 5}")
        await reader.next_publication("prices:1")

    assert slow.open
    assert slow.transport.most < 4 * BEHIND_BYTES  # type: ignore[attr-defined]


async def test_too_much_to_keep_makes_a_client_slow(slow: HubClient, settings: Settings) -> None:
    await slow.subscribe("prices:1")
    await stall(slow, "prices:1")

    for number in range(40):
        await apublish("prices:1", "message", FILLER, key=f"share {number}")

    assert (await slow.closed_by_hub()) is codes.SLOW
    assert behind(await current_switchboard()) == 0


async def test_a_topic_that_does_not_conflate_disconnects_who_is_behind(slow: HubClient) -> None:
    for topic in ("prices:1", "open:1"):
        await slow.subscribe(topic)
    await stall(slow, "prices:1")

    for _ in range(40):
        await apublish("open:1", "message", FILLER)

    assert (await slow.closed_by_hub()) is codes.SLOW


async def test_a_client_that_comes_back_recovers_what_was_kept_for_it(slow: HubClient, reader: HubClient) -> None:
    epoch = (await slow.subscribe("prices:1"))["epoch"]
    await stall(slow, "prices:1")
    for number in range(4):
        await apublish("prices:1", "message", number, key="share")
    slow.close()

    result = await reader.subscribe("prices:1", since=Cursor(3, epoch))

    assert result["recovered"] is True
    assert [publication["data"] for publication in result["publications"]] == [0, 1, 2, 3]
    assert behind(await current_switchboard()) == 0


async def test_nothing_is_kept_of_a_topic_that_was_left(slow: HubClient) -> None:
    await slow.subscribe("prices:1")
    await stall(slow, "prices:1")
    await apublish("prices:1", "message", "before", key="share")

    slow.send("unsubscribe", channel="prices:1")
    await until(lambda: not slow.session.subscriptions)
    slow.send("subscribe", channel="prices:1")
    await until(lambda: slow.session.subscriptions and slow.session.subscriptions["prices:1"].established)
    await apublish("prices:1", "message", "last")

    assert await caught_up(slow, "prices:1") == [(5, "", "last")]


async def test_whom_an_event_excludes_is_kept_the_others(slow: HubClient) -> None:
    await slow.subscribe("prices:1")
    await stall(slow, "prices:1")

    await apublish("prices:1", "message", "of others", key="share")
    await apublish("prices:1", "message", "own", key="share", exclude=slow.session.id)
    await apublish("prices:1", "message", "last")

    assert await caught_up(slow, "prices:1") == [(4, "share", "of others"), (6, "", "last")]


async def test_a_filter_keeps_what_it_passes(slow: HubClient) -> None:
    await slow.subscribe("prices:1", tf={"key": "market", "cmp": "neq", "val": "dark"})
    await stall(slow, "prices:1")

    for number, market in enumerate(["open", "dark"] * 2):
        await apublish("prices:1", "message", number, key="share", tags={"market": market})
    await apublish("prices:1", "message", "last")

    assert [data for _, _, data in await caught_up(slow, "prices:1")] == [2, "last"]


async def test_deltas_begin_anew_with_what_was_kept(slow: HubClient) -> None:
    await slow.subscribe("prices:1", delta="fossil")
    await stall(slow, "prices:1")
    for number in range(3):
        await apublish("prices:1", "message", {"number": number, "rest": FILLER}, key="share")
    await until(lambda: {"number": 2, "rest": FILLER} in kept(slow.session, "prices:1"))
    slow.transport.read_on()  # type: ignore[attr-defined]
    await until(lambda: behind(slow.session.switchboard) == 0)
    for number in (3, 4):
        await apublish("prices:1", "message", {"number": number, "rest": FILLER}, key="share")

    payload, numbers, whole = b"", [], []
    while 4 not in numbers:
        publication = await slow.next_publication("prices:1")
        received = publication["data"].encode()
        payload = fossil.apply_delta(payload, received) if publication.get("delta") else received
        if isinstance(data := json.loads(payload), dict):
            numbers.append(data["number"])
            whole.append(not publication.get("delta", False))

    assert list(zip(numbers, whole, strict=True)) == [(2, True), (3, True), (4, False)]


async def test_who_is_behind_is_told_of_joins_and_counted(slow: HubClient, reader: HubClient) -> None:
    await slow.subscribe("prices:1", join_leave=True)
    await stall(slow, "prices:1")

    await reader.subscribe("prices:1")
    await apublish("prices:1", "message", "last")
    await reader.next_publication("prices:1")
    switchboard = await current_switchboard()

    assert len(switchboard.topics["prices:1"].subscriptions()) == 2
    slow.transport.read_on()  # type: ignore[attr-defined]
    joined: set[str] = set()
    while reader.session.id not in joined:
        push = await slow.next_push()
        joined |= {push["join"]["info"]["client"]} if "join" in push else set()
    assert joined == {slow.session.id, reader.session.id}


async def test_who_catches_up_within_a_turn_gets_its_events_once(slow: HubClient, reader: HubClient) -> None:
    for client in (slow, reader):
        await client.subscribe("glimpses:1")
    await stall(slow, "glimpses:1")
    await apublish("glimpses:1", "message", 1, key="share")
    await until(lambda: 1 in kept(slow.session, "glimpses:1"))
    switchboard = await current_switchboard()

    for number in (2, 3):
        event = new_event(topic="glimpses:1", type="message", data=number, key="share")
        switchboard.topics["glimpses:1"].arrived(event)
        slow.transport.read_on()  # type: ignore[attr-defined]
        switchboard.conflation._look()
    await apublish("glimpses:1", "message", "last")

    received = [(await slow.next_publication("glimpses:1"))["data"] for _ in range(6)]
    assert received == [*FILLERS, 2, 3, "last"]
    everything = [(await reader.next_publication("glimpses:1"))["data"] for _ in range(7)]
    assert everything == [*FILLERS, 1, 2, 3, "last"]


async def test_many_that_stall_share_what_they_get_then(hub_client: Connect) -> None:
    await hub_client()
    transports = [SlowSocket() for _ in range(50)]
    sessions = [Session(await current_switchboard(), CENTRIFUGE, transport) for transport in transports]
    for session in sessions:
        session.opened()
        session.feed('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"prices:1"}}')
    switchboard = await current_switchboard()
    await until(lambda: "prices:1" in switchboard.topics and len(switchboard.topics["prices:1"].ready) == 50)
    written: list[list[bytes]] = []
    for transport in transports:
        transport.stalled = True
    for filler in FILLERS:
        await apublish("prices:1", "message", filler)
    await until(lambda: all(transport.pending() > BEHIND_BYTES for transport in transports))
    for number in range(2):
        await apublish("prices:1", "message", number, key="share")
    await until(lambda: behind(switchboard) == 50 and all(1 in kept(each, "prices:1") for each in sessions))

    for transport in transports:
        transport.unsent = []
        transport.write = written.append  # type: ignore[method-assign]
    await until(lambda: len(written) == 50)

    assert {len(frames) for frames in written} == {1}
    assert len({id(frames[0]) for frames in written}) == 1


async def test_a_transport_of_any_server_tells_of_what_its_peer_has_not_taken() -> None:
    taken: list[Any] = []
    gate = asyncio.Event()

    async def send(message: Any) -> None:
        await gate.wait()
        taken.append(message)

    transport = AsgiWebSocketTransport(send, lambda: None)

    transport.write([b"[1]"])
    await asyncio.sleep(0)
    transport.write([b"[22]"])
    assert transport.pending() == 7
    gate.set()
    await until(lambda: len(taken) == 2)
    await until(lambda: not transport.congested)

    assert [msgspec.json.decode(message["text"]) for message in taken] == [[1], [22]]
