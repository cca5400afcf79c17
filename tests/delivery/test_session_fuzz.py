"""Hostile input: any frames, and any commands in any order, at sessions of a real switchboard.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import jwt
import pytest
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from hypothesis import given, note, settings
from hypothesis import strategies as st
from pytest_django import Settings

from notifications.delivery import codes, control, presence, switchboard
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.protocols.centrifuge import CENTRIFUGE, CENTRIFUGE_PROTOBUF, EMULATED
from notifications.delivery.registry import registry as processes
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.delivery.tokens import subscription_token
from notifications.events import Cursor, apublish, durable, publish
from notifications.events.logs import log_for
from notifications.events.messages import group_of
from notifications.events.recording import start_recording, stop_recording
from notifications.events.services import aremove_history
from notifications.events.topics import resolve
from notifications.testing.client import HubClient
from tests.delivery.declared import KINDS, Asked, Given, declared
from tests.delivery.test_tokens import Issuer, listed
from tests.delivery.watched import (
    EXAMPLES,
    Facts,
    WatchedClient,
    a_switchboard,
    errors_in,
    fuzzed,
    is_idle,
    leftovers,
    until,
)

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _declared(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    settings.HUB_POSITION_CHECK_SECONDS = 0.05
    monkeypatch.setattr(switchboard, "LINGER_SECONDS", 0.005)
    with declared():
        yield


@pytest.fixture
async def ana() -> User:
    return await User.objects.acreate_user("ana")


# The world of one example

_examples = itertools.count(1)


class World:
    """A switchboard with clients, and all that happens to them."""

    def __init__(self, board: Switchboard, user: User, secret: str, facts: Facts) -> None:
        self.board = board
        self.user = user
        self.secret = secret
        self.facts = facts
        self.number = next(_examples)
        self.clients: list[WatchedClient] = []
        self.everybody: list[WatchedClient] = []
        for slot in range(3):
            self.clients.append(self._opened(slot))
            self.connect(slot)

    def _opened(self, slot: int) -> WatchedClient:
        protocol = (CENTRIFUGE, CENTRIFUGE_PROTOBUF, EMULATED)[slot]
        identity = Identity(user=str(self.user.pk)) if slot == 2 else ANONYMOUS
        client = WatchedClient(self.board, protocol, identity, self.facts)
        self.everybody.append(client)
        return client

    def token(self, **claims: Any) -> str:
        return jwt.encode({"sub": str(self.user.pk), **claims}, self.secret, algorithm="HS256")

    def connect(self, slot: int) -> None:
        # The client of the binary protocol has a token, the others a cookie or nothing.
        self.clients[slot].send("connect", **({"token": self.token()} if slot == 1 else {}))

    def topic(self, kind: str) -> str:
        return f"{kind}:{self.number}"

    # What clients do. `how` chooses among the ways to do it.

    async def do_open(self, slot: int, kind: str, how: int) -> None:
        for closed in [slot for slot, client in enumerate(self.clients) if not client.open]:
            self.clients[closed] = self._opened(closed)
            if how != 7:
                self.connect(closed)

    async def do_subscribe(self, slot: int, kind: str, how: int) -> None:
        client, topic = self.clients[slot], self.topic(kind)
        request: dict[str, Any] = {"channel": topic}
        if how in (1, 2, 3, 6):
            epoch, offset = client.left.get(topic, ("", 0))
            request |= {"recover": True, "offset": offset + (how == 3) * 100, "epoch": epoch, "flag": 2 * (how == 2)}
        if how in (4, 6):
            request["delta"] = "fossil"
        elif how == 5 and kind in ("kept", "fleeting"):
            request["tf"] = {"key": "room", "cmp": "eq", "val": "a"}
        elif how == 7 or kind == "denied":
            request["token"] = subscription_token(client.session.identity.user, topic)
        client.send("subscribe", **request, join_leave=how % 2 == 0)

    async def do_unsubscribe(self, slot: int, kind: str, how: int) -> None:
        self.clients[slot].send("unsubscribe", channel=self.topic(kind))

    async def do_publish(self, slot: int, kind: str, how: int) -> None:
        topic = self.topic(kind)
        self.clients[slot].send("publish", channel=topic, data=self.facts.new(topic).data)

    async def do_read(self, slot: int, kind: str, how: int) -> None:
        client, topic = self.clients[slot], self.topic(kind)
        if how < 2:
            client.send(("presence", "presence_stats")[how], channel=topic)
            return
        epoch, offset = client.left.get(topic, ("", 0))
        since = {"offset": offset, "epoch": epoch if how < 6 else "another"}
        limit = (0, -1, 1, 10**6)[how % 4]
        client.send(
            "history", channel=topic, limit=limit, reverse=how % 2 == 1, **({"since": since} if how > 3 else {})
        )

    async def do_call(self, slot: int, kind: str, how: int) -> None:
        client = self.clients[slot]
        if how < 2:
            client.send("rpc", method=("fuzz.echo", "nobody")[how], data=how)
        elif how < 4:
            client.send("send", data=how)
        elif how < 6:
            client.send(
                "sub_refresh", channel=self.topic(kind), token=("x", self._subscription_token(slot, kind))[how % 2]
            )
        else:
            client.send("refresh", token=self.token(exp=int(time.time()) + 600))

    def _subscription_token(self, slot: int, kind: str) -> str:
        return subscription_token(self.clients[slot].session.identity.user, self.topic(kind))

    async def do_break(self, slot: int, kind: str, how: int) -> None:
        """What no client should do."""
        client = self.clients[slot]
        if how < 2:
            client.close_transport()
        elif how == 2:
            client.pong()
        elif how == 3:
            client.session.feed(b"\xff" if client.binary else "garbage")
        elif how == 4:
            client.send("refresh", token=self.token(exp=1))
        elif how == 5:
            client.send("subscribe", channel="")
        elif how == 6:
            client.send("subscribe", channel=self.topic(kind), type=1)
        else:
            client.send("connect", token="x")

    # What the server does.

    async def do_announce(self, slot: int, kind: str, how: int) -> None:
        if kind == "unknown":
            return
        topic = self.topic(kind)
        # What a thread announces may be overtaken by the announcement of another.
        excludes = how < 3 and kind != "ledger"
        exclude = self.clients[how].session.id if excludes else ""
        event = self.facts.new(topic, tags={"room": "ab"[how % 2]}, exclude=exclude)
        await apublish(event.topic, event.type, event.data, tags=event.tags, exclude=exclude or None)

    async def do_lose(self, slot: int, kind: str, how: int) -> None:
        """Publish what the layer loses."""
        name = self.topic(kind)
        live = self.board.topics.get(name)
        if live is None or live.position is None:
            return
        layer = get_channel_layer()
        await layer.group_discard(group_of(name), self.board.channel)
        event = self.facts.new(name)
        await apublish(name, event.type, event.data)
        await layer.group_add(group_of(name), self.board.channel)

    async def do_forget(self, slot: int, kind: str, how: int) -> None:
        if kind not in ("fleeting", "unknown"):
            await aremove_history(topic=self.topic(kind))

    async def do_steer(self, slot: int, kind: str, how: int) -> None:
        client, topic = self.clients[slot].session.id, self.topic(kind)
        if how < 2:
            since = Cursor() if how else None
            control.subscribe(topic=topic, client=client, data={"from": "the server"}, since=since)
        elif how == 2:
            control.unsubscribe(topic=topic, client=client)
        elif how == 3:
            control.unsubscribe(topic=topic)
        elif how == 4:
            control.refresh(client=client, expires_at=time.time() + 600)
        elif how == 5:
            control.message(client=client, data="for you")
        else:
            Asked.allowed = how == 6
            control.rejudge(topic=topic if slot else None)

    async def do_end(self, slot: int, kind: str, how: int) -> None:
        client = self.clients[slot].session.id
        if how < 4:
            control.disconnect(client=client)
        elif how < 6:
            control.refresh(client=client, expired=True)
        elif how == 6:
            control.disconnect(user=str(self.user.pk), keep=[client])
        else:
            self.board.drain()

    async def do_turn(self, slot: int, kind: str, how: int) -> None:
        """Let the loop turn a few times, or let the threads answer."""
        for _ in range(how):
            await asyncio.sleep(0)
        if how == 7:
            await asyncio.sleep(0.002)

    # The end.

    def unserved(self) -> list[Any]:
        """What clients that are open still wait for, or are still not told."""
        waiting = []
        for client in self.clients:
            if client.open:
                waiting += [client.asked] if client.asked else []
                waiting += [found for seen in client.seen.values() if (found := client.unserved(seen))]
        return waiting

    async def settle(self) -> None:
        """Wait until every command is answered and every event delivered."""
        ledger = resolve(self.topic("ledger"))
        await until(lambda: is_idle(self.board, self.sessions), lambda: leftovers(self.board, self.sessions))
        if any("ledger" in event.topic for event in self.facts.published.values()):
            page = await log_for(ledger.retention).aread(ledger, since=None, limit=None)
            self.facts.stored = [event.decoded() for event in page.events]
        await until(lambda: not self.unserved(), self.unserved)

    @property
    def sessions(self) -> list[Session]:
        """All that there ever were."""
        return [client.session for client in self.everybody]

    async def nothing_is_left(self) -> None:
        await until(lambda: not leftovers(self.board, self.sessions), lambda: leftovers(self.board, self.sessions))
        for kind in KINDS:
            assert await presence.members(self.topic(kind)) == {}
        await self.board.housekeeping.renew_lease()
        assert await processes().asubscribers() == {}
        assert processes().sessions() == []


@asynccontextmanager
async def a_world(user: User, secret: str) -> AsyncIterator[World]:
    recorder = start_recording()
    try:
        async with a_switchboard() as board:
            world = World(board, user, secret, Facts(recorder))
            Asked.allowed, Given.names = True, (world.topic("given"), world.topic("given") + "0")
            try:
                yield world
            finally:
                # First, as it may be why something else is not as it should be.
                for violation in world.facts.violations:
                    raise violation
    finally:
        Given.names = ()
        stop_recording(recorder)


class Act(NamedTuple):
    """What happens, to whom, on which of the example's topics and in which way."""

    name: str
    slot: int
    kind: int
    how: int


# The first is what an example is made of that was made simpler.
ACTS = {
    "turn": 16,
    "subscribe": 14,
    "announce": 16,
    "publish": 8,
    "unsubscribe": 5,
    "open": 5,
    "steer": 5,
    "read": 4,
    "call": 2,
    "lose": 2,
    "forget": 1,
    "break": 1,
    "end": 1,
}
acts = st.builds(
    Act,
    st.sampled_from([name for name, weight in ACTS.items() for _ in range(weight)]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 7),
)
# Few in one example, so that much happens on each.
kinds = st.lists(st.sampled_from(("kept", "kept", *KINDS)), min_size=1, max_size=3)
LEFT_BY = ("close_transport", "drain", "disconnect")


@settings(fuzzed, max_examples=EXAMPLES or 120)
@given(kinds=kinds, script=st.lists(acts, min_size=60, max_size=80), left_by=st.sampled_from(LEFT_BY))
async def test_any_order_of_commands_delivers_what_was_asked_for_and_leaves_nothing(
    kinds: list[str], script: list[Act], left_by: str, ana: User, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    note(f"{kinds} {[tuple(act) for act in script]} {left_by}")
    caplog.clear()
    async with a_world(ana, settings.HUB_TOKEN_SECRET) as world:
        for act in script:
            await getattr(world, f"do_{act.name}")(act.slot, kinds[act.kind % len(kinds)], act.how)
        await world.settle()
        if left_by == "drain":
            world.board.drain()
        for client in world.everybody:
            if left_by == "disconnect":
                control.disconnect(client=client.session.id)
            else:
                client.close_transport()
        await world.nothing_is_left()
    assert errors_in(caplog) == []


# What the examples found


@pytest.mark.parametrize("turns", range(5))
async def test_a_repair_sends_nothing_to_a_client_that_an_announcement_still_on_its_way_excludes(
    turns: int, hub_client: Connect
) -> None:
    client = await hub_client()
    await client.subscribe("kept:1")
    board = await switchboard.current_switchboard()
    await get_channel_layer().group_discard(group_of("kept:1"), board.channel)
    await apublish("kept:1", "message", "lost")
    await get_channel_layer().group_add(group_of("kept:1"), board.channel)

    await apublish("kept:1", "message", "own", exclude=client.session.id)
    for _ in range(turns):
        await asyncio.sleep(0)
    await apublish("kept:1", "message", "own again", exclude=client.session.id)
    await apublish("kept:1", "message", "of another")

    assert [(await client.next_publication("kept:1"))["data"] for _ in range(2)] == ["lost", "of another"]


async def test_a_comparison_of_positions_sends_nothing_to_a_client_that_an_announcement_on_its_way_excludes(
    hub_client: Connect,
) -> None:
    client = await hub_client()
    await client.subscribe("kept:1")
    board = await switchboard.current_switchboard()

    publishing = asyncio.create_task(asyncio.to_thread(publish, "kept:1", "message", "own", exclude=client.session.id))
    while not publishing.done():
        board.housekeeping.reconnected()
        await asyncio.sleep(0)
    await apublish("kept:1", "message", "of another")

    assert (await client.next_publication("kept:1"))["data"] == "of another"


async def test_commands_behind_a_connect_that_fails_are_not_carried_out(
    hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_ALLOW_ANONYMOUS = False
    client = await hub_client(connect=False)

    expired = client.send("connect", token=jwt.encode({"sub": "1", "exp": 1}, settings.HUB_TOKEN_SECRET))
    client.send("subscribe", channel="kept:1")

    assert await client.closed_by_hub() == codes.BAD_FRAME
    answers = [client.transport.messages.get_nowait() for _ in range(client.transport.messages.qsize())]
    assert [(answer["id"], answer["error"]["code"]) for answer in answers] == [(expired, 109)]


@pytest.mark.parametrize("topic", ["given:1", "given:2"])
async def test_a_topic_that_the_server_takes_back_during_the_connect_does_not_fail_it(
    topic: str, hub_client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Given, "names", ("given:1", "given:2", "given:3"))
    monkeypatch.setattr(Given, "retention", durable())  # whose position is asked of a thread
    client = await hub_client(connect=False)
    connect = asyncio.create_task(client.command("connect"))
    while "given:2" not in client.session.subscriptions:
        await asyncio.sleep(0)

    control.unsubscribe(topic=topic)

    assert set((await connect)["subs"]) == {"given:1", "given:2", "given:3"} - {topic}
    assert await client.next_push() == {"channel": topic, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}


async def test_a_session_that_ends_while_a_key_is_fetched_is_forgotten(hub_client: Connect, settings: Settings) -> None:
    issuer = Issuer()
    issuer.answering.clear()
    settings.HUB_TOKEN_JWKS_URL = issuer.url
    client = await hub_client(connect=False)
    client.send("connect", token=listed())
    await until(lambda: issuer.requests, lambda: "no key is asked for")

    client.close()
    issuer.stop()
    await until(lambda: client.session._task is None, lambda: "the command does not end")

    assert (await switchboard.current_switchboard()).sessions_of_user == {}
