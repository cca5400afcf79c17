"""Who is there: leases that end by themselves, joins and leaves told together, and topics that are only counted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.layers import get_channel_layer
from pytest_django import Settings
from websockets.asyncio.client import connect

from notifications.delivery import presence
from notifications.delivery.identity import Identity
from notifications.delivery.presence import TOLD_AT_ONCE
from notifications.delivery.switchboard import Switchboard
from notifications.events import Topic
from notifications.events.messages import PRESENCE, group_of
from notifications.events.topics import registry
from notifications.testing.client import HubClient
from tests.conftest import OPEN_TOPICS
from tests.delivery.processes import connected
from tests.delivery.test_trouble import own_redis  # noqa: F401 - a fixture
from tests.servers import HubProcess, RedisServer, free_port

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]
TOPIC = "open:hall"


class Lobby(Topic):
    """Without a log."""

    pattern = "lobby:<name>"
    presence = join_leave = True
    asks_only_identity = True

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True


@pytest.fixture(autouse=True)
def _declared(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    registry.register(Lobby)
    yield
    registry.unregister(Lobby)


async def eventually(condition: Callable[[], Awaitable[Any]], *, seconds: float = 10) -> None:
    """Wait until a condition that has to be asked for holds."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


async def present(topic: str = TOPIC) -> set[str]:
    """Who is there as the store has it, without what this process is about to write."""
    return set(await presence.store().members(topic) or {})


async def crowd(switchboard: Switchboard, number: int) -> list[HubClient]:
    """So many clients that subscribe at once."""
    clients = [
        await connected(switchboard, Identity(user=f"user {place % 3}", from_token=True)) for place in range(number)
    ]
    await asyncio.gather(*(client.subscribe(TOPIC) for client in clients))
    return clients


def ids(clients: list[HubClient]) -> set[str]:
    return {client.session.id for client in clients}


async def told(client: HubClient, number: int) -> list[tuple[str, str]]:
    """So many joins and leaves that a client is told, its own left out."""
    found: list[tuple[str, str]] = []
    while len(found) < number:
        push = await client.next_push()
        told = [(action, push[action]["info"]["client"]) for action in ("join", "leave") if action in push]
        found += [change for change in told if change[1] != client.session.id]
    return found


async def listening() -> Callable[[], Awaitable[dict[str, Any]]]:
    """Receives what the layer brings to the topic's group, events left out."""
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group_of(TOPIC), channel)

    async def receive() -> dict[str, Any]:
        while (message := await asyncio.wait_for(layer.receive(channel), 5))["type"] != PRESENCE:
            pass
        found: dict[str, Any] = message
        return found

    return receive


async def test_everybody_is_told_of_many_that_come_and_go(switchboards: list[Switchboard]) -> None:
    observer = await connected(switchboards[1])
    await observer.subscribe(TOPIC, join_leave=True)

    clients = await crowd(switchboards[0], 40)
    joined = await told(observer, 40)
    for client in clients:
        client.close()
    left = await told(observer, 40)

    assert joined == [("join", client.session.id) for client in clients]
    assert left == [("leave", client.session.id) for client in clients]
    await eventually(lambda: _equal(present(), {observer.session.id}))


async def _equal(found: Awaitable[Any], expected: Any) -> bool:
    return bool(await found == expected)


async def test_what_happens_together_is_one_message(switchboards: list[Switchboard]) -> None:
    receive = await listening()
    clients = [await connected(switchboards[0]) for _ in range(TOLD_AT_ONCE + 20)]

    await asyncio.gather(*(client.subscribe(TOPIC) for client in clients))
    sizes = []
    while sum(sizes) < len(clients):
        sizes.append(1 + len((await receive()).get("others", ())))

    # The first of a quiet time are written at once, the others together; a message has a limit.
    assert len(sizes) <= 4
    assert max(sizes) <= TOLD_AT_ONCE


async def test_the_first_of_a_message_is_where_older_processes_look(switchboards: list[Switchboard]) -> None:
    first, second = [await connected(switchboards[0], Identity(user=user, from_token=True)) for user in ("1", "2")]
    for client in (first, second):
        await client.subscribe(TOPIC)
    await eventually(lambda: _equal(present(), ids([first, second])))
    receive = await listening()

    for client in (first, second):
        client.session.unsubscribe(TOPIC)
    while (message := await receive())["action"] == "join":
        pass

    infos = [{"user": user, "client": client.session.id} for user, client in (("1", first), ("2", second))]
    assert message == {
        "type": "hub.presence",
        "v": 1,
        "topic": TOPIC,
        "action": "leave",
        "client": first.session.id,
        "info": infos[0],
        "others": [["leave", second.session.id, infos[1]]],
    }


async def test_what_older_processes_tell_is_understood(switchboards: list[Switchboard]) -> None:
    observer = await connected(switchboards[0])
    await observer.subscribe(TOPIC, join_leave=True)

    for action in ("join", "leave"):
        message = {"type": "hub.presence", "v": 1, "topic": TOPIC, "action": action, "client": "old"}
        await get_channel_layer().group_send(group_of(TOPIC), {**message, "info": {"user": "7", "client": "old"}})

    assert await told(observer, 2) == [("join", "old"), ("leave", "old")]


async def test_who_left_before_it_was_told_of_is_not_told_of(
    switchboards: list[Switchboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "BATCH_SECONDS", 1.0)
    observer, pacemaker, passing, coming = [await connected(switchboards[0]) for _ in range(4)]
    await observer.subscribe(TOPIC, join_leave=True)
    await pacemaker.subscribe(TOPIC)
    assert await told(observer, 1) == [("join", pacemaker.session.id)]  # what comes now waits for a moment

    await passing.subscribe(TOPIC)
    await passing.command("unsubscribe", channel=TOPIC)
    await coming.subscribe(TOPIC)

    assert await told(observer, 1) == [("join", coming.session.id)]
    assert await present() == ids([observer, pacemaker, coming])


async def test_who_comes_back_at_once_is_told_to_have_left_and_joined(switchboards: list[Switchboard]) -> None:
    observer, client = [await connected(switchboards[0]) for _ in range(2)]
    await observer.subscribe(TOPIC, join_leave=True)
    await client.subscribe(TOPIC)
    await told(observer, 1)

    await client.command("unsubscribe", channel=TOPIC)
    await client.subscribe(TOPIC)

    id = client.session.id
    assert await told(observer, 2) == [("leave", id), ("join", id)]
    assert await present() == ids([observer, client])


async def test_a_client_sees_itself_at_once(switchboards: list[Switchboard]) -> None:
    for number in range(1, 6):
        client = await connected(switchboards[0])
        await client.subscribe(TOPIC)

        members = (await client.command("presence", channel=TOPIC))["presence"]

        assert client.session.id in members
        assert len(members) == number


async def test_a_process_that_stops_takes_its_leases_back(switchboards: list[Switchboard]) -> None:
    staying = await crowd(switchboards[1], 2)
    await crowd(switchboards[0], 10)

    await switchboards[0].stop()

    await eventually(lambda: _equal(present(), ids(staying)))


async def test_beyond_a_number_of_members_they_are_only_counted(
    switchboards: list[Switchboard], settings: Settings
) -> None:
    settings.HUB_PRESENCE_MAX_MEMBERS = 5
    observer, *clients = await crowd(switchboards[0], 5)
    await observer.command("unsubscribe", channel=TOPIC)
    await observer.subscribe(TOPIC, join_leave=True)
    listed = await observer.command("presence", channel=TOPIC)

    # Written, and not only known here: of as many as can be told the newcomer would be told of.
    await eventually(lambda: _equal(present(), ids([observer, *clients])))

    newcomer = await connected(switchboards[1])
    await newcomer.subscribe(TOPIC)
    await eventually(lambda: _equal(present(), ids([observer, newcomer, *clients])))
    refused = await observer.answer("presence", channel=TOPIC)
    counts = await observer.command("presence_stats", channel=TOPIC)
    for client in (newcomer, clients[0]):
        await client.command("unsubscribe", channel=TOPIC)

    assert len(listed["presence"]) == 5
    assert refused == {"code": 106, "message": "limit exceeded"}
    assert counts == {"num_clients": 6, "num_users": 4}
    # Nothing was told of the one too many; who leaves is told of again once they are as many as can be told.
    leaving = {("leave", newcomer.session.id), ("leave", clients[0].session.id)}
    changes: set[tuple[str, str]] = set()
    while not leaving <= changes:  # the joins of the first may be told late
        changes.update(await told(observer, 1))
    assert ("join", newcomer.session.id) not in changes


async def test_without_a_limit_everybody_is_listed(switchboards: list[Switchboard], settings: Settings) -> None:
    settings.HUB_PRESENCE_MAX_MEMBERS = 0
    clients = await crowd(switchboards[0], 30)

    assert (await clients[0].command("presence", channel=TOPIC))["presence"].keys() == ids(clients)


async def test_large_topics_are_counted_once_for_all_who_ask(
    switchboards: list[Switchboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "COUNTED_AT_ONCE", 10)
    clients = await crowd(switchboards[0], 20)
    await eventually(lambda: _equal(present(), ids(clients)))

    before = await asyncio.gather(*(client.command("presence_stats", channel=TOPIC) for client in clients))
    clients[0].close()
    await eventually(lambda: _equal(present(), ids(clients[1:])))

    assert before == [{"num_clients": 20, "num_users": 3}] * 20
    assert await presence.stats(TOPIC) == (20, 3)  # what was found is good for a second
    await eventually(lambda: _equal(presence.stats(TOPIC), (19, 3)))


async def test_a_lease_that_is_not_renewed_ends(switchboards: list[Switchboard], settings: Settings) -> None:
    settings.HUB_PRESENCE_TTL_SECONDS = 1
    await presence.store().write({TOPIC: {"ghost": {"user": "1", "client": "ghost"}}})
    assert await present() == {"ghost"}

    await eventually(lambda: _equal(present(), set()), seconds=3)
    counts = await presence.store().write({TOPIC: {"other": None}})

    assert counts == {TOPIC: 0}


async def test_what_happens_while_redis_is_down_is_written_when_it_is_back(
    own_redis: RedisServer,  # noqa: F811
    hub_client: Connect,
) -> None:
    observer, leaving, coming = [await hub_client() for _ in range(3)]
    for client in (observer, leaving):
        await client.subscribe("lobby:1", join_leave=True)
    await told(observer, 1)

    await asyncio.to_thread(own_redis.stop)
    await leaving.command("unsubscribe", channel="lobby:1")
    await coming.subscribe("lobby:1")
    await asyncio.to_thread(own_redis.start)

    # Redis has forgotten the others; their leases are renewed in time.
    await eventually(lambda: _equal(present("lobby:1"), ids([coming])))


async def test_a_killed_process_leaves_no_ghosts_beyond_the_lease(tmp_path: Path, redis_url: str) -> None:
    lease = 3
    environment = {
        "HUB_DATA": str(tmp_path / "data"),
        "HUB_TOPICS": OPEN_TOPICS,
        "HUB_PRESENCE_TTL_SECONDS": str(lease),
        "SECRET_KEY": "the same for both processes of one test run",
        "REDIS_URL": redis_url.removesuffix("0") + "5",
    }
    HubProcess(["-m", "hub", "migrate"], tmp_path, environment, name="migrate").process.wait(60)
    processes, urls = [], []
    for name in ("killed", "staying"):
        port = free_port()
        command = ["-m", "uvicorn", "hub.asgi:application", "--port", str(port)]
        processes.append(HubProcess(command, tmp_path, environment, name=name))
        urls.append(f"ws://127.0.0.1:{port}/connection/websocket")
    for process in processes:
        process.wait_for("Uvicorn running")

    commands = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:hall"}}'
    async with connect(urls[0]) as ghost, connect(urls[1]) as staying:
        clients = []
        for socket in (ghost, staying):
            await socket.send(commands)
            clients.append((await receive(socket))["connect"]["client"])
            await receive(socket)
        await eventually(lambda: _equal(asked(staying), set(clients)))

        os.kill(processes[0].process.pid, signal.SIGKILL)
        killed = time.monotonic()
        await eventually(lambda: _equal(asked(staying), {clients[1]}), seconds=3 * lease)
        seconds = time.monotonic() - killed
        # Whoever lives is renewed for longer than one lease.
        while time.monotonic() < killed + 2 * lease:
            assert await asked(staying) == {clients[1]}
            await asyncio.sleep(0.1)
    processes[1].stop()

    assert seconds < lease + 2


async def receive(socket: Any) -> Any:
    """The next reply on a socket; of the lines of a message the others are kept."""
    if not (lines := _lines.setdefault(id(socket), [])):
        lines += (await asyncio.wait_for(socket.recv(), 10)).splitlines()
    return json.loads(lines.pop(0))


_lines: dict[int, list[str]] = {}


async def asked(socket: Any) -> set[str]:
    """Who is there, as a client is answered."""
    await socket.send('{"id":9,"presence":{"channel":"open:hall"}}')
    while (reply := await receive(socket)).get("id") != 9:
        pass
    return set(reply["presence"]["presence"])
