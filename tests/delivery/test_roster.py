"""Which clients are connected, over all server processes."""

from __future__ import annotations

import asyncio

import pytest
from pytest_django import Settings

from notifications.delivery import registry as registries
from notifications.delivery import roster as rosters
from notifications.delivery.identity import Identity
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.registry import LEASE_SECONDS, Node, RedisRegistry
from notifications.delivery.roster import LiveSession, Roster, short_agent
from notifications.delivery.selectors import live_sessions
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_clients import async_client
from notifications.testing.client import MemoryTransport
from tests.delivery.processes import connected, ids, told
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)

ANA = Identity(user="7", info={"name": "Ana"}, from_token=True)
BOB = Identity(user="8", from_token=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


async def test_the_sessions_of_all_processes_are_listed(switchboards: list[Switchboard]) -> None:
    first, second = switchboards
    ana, bob, visitor = await connected(first, ANA), await connected(second, BOB), await connected(second)
    await ana.subscribe("open:1")
    await ana.subscribe("open:2")

    await told(first, second)

    found = {session.id: session for session in await asyncio.to_thread(live_sessions)}
    assert found.keys() == {ana.session.id, bob.session.id, visitor.session.id}
    names = {node.id: node.name for node in await registries.registry().anodes()}
    assert found[ana.session.id] == LiveSession(
        id=ana.session.id,
        user="7",
        name="Ana",
        protocol="centrifuge",
        opened_at=found[ana.session.id].opened_at,
        subscriptions=3,  # with the personal topic
        credential="token",
        server=names[first.node],
    )
    assert [(found[client.session.id].user, found[client.session.id].name) for client in (bob, visitor)] == [
        ("8", "8"),
        ("", ""),
    ]


@pytest.mark.parametrize(
    ("identity", "credential", "login"),
    [
        (Identity(user="7", login="of a browser"), "login", "of a browser"),
        (ANA, "token", ""),
        (Identity(grants=("open:*",), login="key:0"), "key", ""),
        (Identity(), "", ""),
    ],
)
async def test_with_what_a_client_signed_in(
    silent: Switchboard, identity: Identity, credential: str, login: str
) -> None:
    roster = Roster(silent.sessions)
    opened(silent, roster, identity)

    (listed,) = roster.everybody()

    assert (listed.credential, listed.login) == (credential, login)


async def test_the_sessions_of_one_user_and_those_of_visitors(switchboards: list[Switchboard]) -> None:
    first, second = switchboards
    anas = [await connected(first, ANA), await connected(second, ANA)]
    visitor = await connected(first)
    await told(first, second)

    of_ana = await asyncio.to_thread(live_sessions, user="7")
    of_visitors = await asyncio.to_thread(live_sessions, user="")

    assert ids(of_ana) == {client.session.id for client in anas}
    assert ids(of_visitors) == {visitor.session.id}


async def test_what_changes_is_told_and_who_leaves_vanishes(switchboards: list[Switchboard]) -> None:
    first, second = switchboards
    ana, bob = await connected(first, ANA), await connected(second, BOB)
    await ana.subscribe("open:1")
    await told(first, second)
    await ana.command("unsubscribe", channel="open:1")
    bob.close()

    await told(first, second)

    (left,) = await asyncio.to_thread(live_sessions)
    assert (left.id, left.subscriptions) == (ana.session.id, 1)  # the personal topic


async def test_a_process_that_stops_takes_its_sessions_along(switchboards: list[Switchboard]) -> None:
    first, second = switchboards
    ana, bob = await connected(first, ANA), await connected(second, BOB)
    await told(first, second)
    assert ids(await asyncio.to_thread(live_sessions)) == {ana.session.id, bob.session.id}

    await first.stop()

    assert ids(await asyncio.to_thread(live_sessions)) == {bob.session.id}


@pytest.fixture
async def redis(redis_url: str, settings: Settings) -> RedisRegistry:
    settings.HUB_REDIS_URL = redis_url
    await async_client().flushall()
    return RedisRegistry()


@pytest.fixture
async def silent() -> Switchboard:
    """A process that does nothing by itself."""
    return Switchboard()


def node(name: str, roster: Roster) -> Node:
    return Node(id=name, channel=f"hub.{name}", name=name, sessions=len(roster.everybody()))


async def renew(registry: RedisRegistry, name: str, roster: Roster) -> None:
    if not await registry.renew(node(name, roster), {}):
        roster.tell_anew()
    await registry.tell(name, roster)


def opened(switchboard: Switchboard, roster: Roster, identity: Identity = ANA) -> Session:
    session = Session(switchboard, CENTRIFUGE, MemoryTransport(), identity)
    switchboard.sessions[session.id] = session
    roster.changed(session)
    return session


async def test_the_sessions_of_a_dead_process_vanish_with_its_lease(
    redis: RedisRegistry, silent: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "LEASE_SECONDS", 0.5)
    alive, dead = Roster(silent.sessions), Roster({"gone": Session(silent, CENTRIFUGE, MemoryTransport(), ANA)})
    stays, (gone,) = opened(silent, alive), ids(dead.everybody())
    dead.tell_anew()
    await renew(redis, "dead", dead)
    await renew(redis, "alive", alive)
    assert ids(redis.sessions()) == {stays.id, gone}

    async with asyncio.timeout(10):
        while gone in ids(redis.sessions()):
            await renew(redis, "alive", alive)
            await asyncio.sleep(0.05)

    assert ids(redis.sessions()) == {stays.id}
    assert 0 < await async_client().ttl("hub:sessions:dead") <= 10 * LEASE_SECONDS


async def test_sessions_are_told_anew_when_redis_lost_them(redis: RedisRegistry, silent: Switchboard) -> None:
    roster = Roster(silent.sessions)
    known = {opened(silent, roster).id, opened(silent, roster).id}
    await renew(redis, "one", roster)
    await async_client().flushall()

    await renew(redis, "one", roster)

    assert ids(redis.sessions()) == known


async def test_what_was_told_of_sessions_that_are_gone_is_forgotten_with_it(
    redis: RedisRegistry, silent: Switchboard
) -> None:
    roster = Roster(silent.sessions)
    gone, stays = opened(silent, roster), opened(silent, roster)
    await renew(redis, "one", roster)
    del silent.sessions[gone.id]  # and nobody is told

    roster.tell_anew()
    await renew(redis, "one", roster)

    assert ids(redis.sessions()) == {stays.id}


async def test_an_idle_process_writes_of_no_session(redis: RedisRegistry, silent: Switchboard) -> None:
    roster = Roster(silent.sessions)
    opened(silent, roster)
    await renew(redis, "one", roster)

    await async_client().config_resetstat()
    await renew(redis, "one", roster)

    commands = await async_client().info("commandstats")
    assert commands["cmdstat_hset"]["calls"] == 1  # the lease
    assert not commands.keys() & {"cmdstat_hdel", "cmdstat_del"}


async def test_what_could_not_be_told_is_told_later(
    redis: RedisRegistry, silent: Switchboard, settings: Settings, redis_url: str
) -> None:
    roster = Roster(silent.sessions)
    session = opened(silent, roster)
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(LogUnavailable):
        await redis.tell("one", roster)
    settings.HUB_REDIS_URL = redis_url

    await renew(redis, "one", roster)

    assert ids(redis.sessions()) == {session.id}


async def test_a_process_that_cannot_tell_does_not_remember_every_client(
    silent: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosters, "MOST_CHANGES", 3)
    roster = Roster(silent.sessions)
    for _ in range(5):
        del silent.sessions[opened(silent, roster).id]
    stays = opened(silent, roster)

    assert roster.take_changes() == (True, [stays.id])
    assert roster.take_changes() == (False, [])


@pytest.mark.parametrize(
    ("header", "short"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox 140 on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 "
            "Safari/537.36 Edg/139.0.0.0",
            "Edge 139 on Windows",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/18.5 Mobile/15E148 Safari/604.1",
            "Safari 18 on iPhone",
        ),
        ("Python/3.11 websockets/15.0", "Python/3.11"),
        ("x" * 200, "x" * 60),
        ("", ""),
    ],
)
def test_user_agents_are_shortened(header: str, short: str) -> None:
    assert short_agent(header) == short
    assert short_agent(header) is short_agent(header)
