"""What may go wrong around a session, and must stay without harm."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.layers import channel_layers, get_channel_layer
from django.contrib.auth.models import User
from django.db import connection
from pytest_django import Settings

from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.session import Session
from notifications.delivery.switchboard import current_switchboard
from notifications.events import Cursor, apublish, publish
from notifications.events.event import at_position, encode, new_event
from notifications.events.exceptions import LogUnavailable
from notifications.events.messages import event_message, group_of
from notifications.events.selectors import history
from notifications.testing.client import HubClient, MemoryTransport
from tests.servers import RedisServer, free_port, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


LAYERS = ["notifications.events.redis_layer.RedisChannelLayer", "channels_redis.pubsub.RedisPubSubChannelLayer"]


def use_redis(settings: Settings, url: str, backend: str = LAYERS[0]) -> None:
    settings.HUB_REDIS_URL = url
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [{"address": url}]}}}
    channel_layers.backends.clear()


@pytest.fixture(params=LAYERS, ids=["hub-layer", "stock-layer"])
def own_redis(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop, start and freeze."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    use_redis(settings, server.url, request.param)
    yield server
    if server.process.poll() is None:
        os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition of the event loop holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def announce(topic: str, offset: int, epoch: str) -> None:
    """Announce an event that no log has, as a layer does that lost those before it."""
    event = at_position(new_event(topic=topic, type="message", data=offset), offset=offset, epoch=epoch)
    await get_channel_layer().group_send(group_of(topic), event_message(event, encode(event), None))


async def test_a_hole_on_a_topic_without_subscribers_ends_it(hub_client: Connect) -> None:
    client = await hub_client()
    epoch = (await client.subscribe("open:1"))["epoch"]
    switchboard = await current_switchboard()
    await client.command("unsubscribe", channel="open:1")

    await announce("open:1", 5, epoch)
    await until(lambda: "open:1" not in switchboard.topics)
    await client.subscribe("open:1")
    await apublish("open:1", "message", "heard")

    assert (await client.next_publication("open:1"))["data"] == "heard"


async def test_a_socket_that_closes_while_it_connects_leaves_nothing(hub_client: Connect) -> None:
    await hub_client()
    switchboard = await current_switchboard()
    for _ in range(5):
        session = Session(switchboard, CENTRIFUGE, MemoryTransport(), ANONYMOUS)
        session.opened()
        session.feed('{"id":1,"connect":{}}')
        session.closed()

    await until(lambda: not switchboard._tasks)

    assert [len(sessions) for sessions in switchboard.sessions_of_user.values()] == [1]


async def test_much_at_once_does_not_make_a_client_slow(hub_client: Connect) -> None:
    client = await hub_client()
    epoch = (await client.subscribe("open:1"))["epoch"]
    for _ in range(20):
        await apublish("open:2", "message", "x" * 60_000)
    for number in range(20):
        await apublish("open:1", "message", str(number) * 30_000)

    offsets = [(await client.next_publication("open:1"))["offset"] for _ in range(20)]
    recovered = await client.subscribe("open:2", since=Cursor(10, ""))

    assert offsets == list(range(1, 21))
    assert len(recovered["publications"]) == 10
    assert epoch != ""
    assert client.open


class StalledTransport(MemoryTransport):
    """A peer that takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0

    @property
    def congested(self) -> bool:  # type: ignore[override]
        return self.unsent > 0

    def write(self, frames: list[bytes]) -> None:
        self.unsent += sum(map(len, frames))

    def pending(self) -> int:
        return self.unsent


async def test_a_client_that_takes_nothing_is_disconnected_as_slow(hub_client: Connect) -> None:
    healthy = await hub_client()
    await healthy.subscribe("open:1")
    transport = StalledTransport()
    stalled = Session(await current_switchboard(), CENTRIFUGE, transport, ANONYMOUS)
    stalled.opened()
    stalled.feed('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:1"}}')
    await until(lambda: "open:1" in stalled.subscriptions and stalled.subscriptions["open:1"].established)

    for _ in range(20):
        await apublish("open:1", "message", "x" * 60_000)
        await healthy.next_publication("open:1")

    assert (await asyncio.wait_for(transport.closed, 5)).code == 3008
    assert transport.unsent < 1_048_576 + 120_000
    assert healthy.open


async def test_who_cannot_be_judged_again_has_to_come_back(hub_client: Connect) -> None:
    user = await User.objects.acreate_user("op", is_staff=True)
    client = await hub_client(user)
    await client.subscribe("activity:staff")
    switchboard = await current_switchboard()
    from notifications.delivery import control

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    await asyncio.to_thread(rename, "auth_user", "auth_user_away")
    await control.judge_everybody(switchboard)
    await asyncio.to_thread(rename, "auth_user_away", "auth_user")

    assert (await client.closed_by_hub()).code == 3011


async def test_a_new_password_ends_the_other_logins(hub_client: Connect) -> None:
    user = await User.objects.acreate_user("ana", password="old")
    client = await hub_client(user)

    user.set_password("new")
    await user.asave()

    assert (await client.closed_by_hub()).code == 3011


async def test_a_change_of_the_user_leaves_what_a_token_granted(hub_client: Connect) -> None:
    user = await User.objects.acreate_user("ana")
    transport = MemoryTransport()
    identity = Identity(user=str(user.pk), topics=("activity:staff",), from_token=True)
    session = Session(await current_switchboard(), CENTRIFUGE, transport, identity)
    session.opened()
    session.feed('{"id":1,"connect":{}}')
    await until(lambda: session.connected)
    witness = await hub_client(await User.objects.acreate_user("bob", is_staff=True))
    await witness.subscribe("activity:staff")

    user.first_name = "Ana"
    await user.asave()
    await witness.next_publication("activity:staff")
    await apublish("activity:staff", "message", 1)

    assert "activity:staff" in session.subscriptions


async def test_rights_that_were_taken_while_redis_was_down_end_when_it_is_back(
    own_redis: RedisServer, hub_client: Connect
) -> None:
    user = await User.objects.acreate_user("op", is_staff=True)
    client = await hub_client(user)
    await client.subscribe("activity:staff")

    await asyncio.to_thread(own_redis.stop)
    user.is_active = False
    await user.asave()
    await asyncio.to_thread(own_redis.start)

    assert (await asyncio.wait_for(asyncio.shield(client.transport.closed), 15)).code in (3010, 3011)


async def test_durable_events_arrive_while_redis_is_down(
    own_redis: RedisServer, hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.1
    client = await hub_client()
    await client.subscribe("open:1")
    await client.subscribe("ledger:1")

    await asyncio.to_thread(own_redis.stop)
    await apublish("ledger:1", "message", "without Redis")

    assert (await client.next_publication("ledger:1"))["data"] == "without Redis"


async def test_a_frozen_redis_does_not_hold_up_permission_checks(own_redis: RedisServer, hub_client: Connect) -> None:
    from notifications.delivery.identity import allows
    from notifications.events.topics import resolve

    await hub_client()
    revocations = (await current_switchboard()).revocations
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    publishing = [asyncio.create_task(apublish(f"ledger:{number}", "message", 1)) for number in range(12)]

    allowed = await asyncio.wait_for(
        allows(ANONYMOUS, resolve("activity:staff"), "subscribe", revocations=revocations), 1
    )
    events = await asyncio.wait_for(asyncio.gather(*publishing), 5)
    os.kill(own_redis.process.pid, signal.SIGCONT)

    assert not allowed
    assert [event.offset for event in events] == [1] * 12


async def test_a_switchboard_that_cannot_start_leaves_nothing_running(settings: Settings) -> None:
    use_redis(settings, f"redis://127.0.0.1:{free_port()}/0")
    before = asyncio.all_tasks()

    for _ in range(3):
        with pytest.raises(LogUnavailable, match="cannot be reached"):
            await current_switchboard()

    left = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before if not task.done()}  # type: ignore[union-attr]
    assert not {name for name in left if name.startswith("Switchboard")}


def test_idempotency_keys_of_topics_with_colons_do_not_meet(own_redis: RedisServer) -> None:
    publish("open:a", "message", "first", idempotency_key="b:c")

    second = publish("open:a:b", "message", "second", idempotency_key="c")

    assert (second.data, second.offset) == ("second", 1)


def test_nothing_is_before_the_first_event(own_redis: RedisServer) -> None:
    publish("open:a", "message", 1)

    assert history("open:a", since=Cursor(0), reverse=True)[0] == []


async def test_publications_that_are_in_flight_together_keep_their_order(
    own_redis: RedisServer, hub_client: Connect
) -> None:
    author, reader = await hub_client(), await hub_client()
    for client in (author, reader):
        await client.subscribe("open:1")

    for number in range(300):
        author.session.feed(f'{{"id":{number + 100},"publish":{{"channel":"open:1","data":{number}}}}}')
    received = [await reader.next_publication("open:1") for _ in range(300)]

    assert [publication["data"] for publication in received] == list(range(300))
    assert [publication["offset"] for publication in received] == list(range(1, 301))


async def test_a_client_that_missed_nothing_recovers_without_a_question_to_the_log(
    own_redis: RedisServer, hub_client: Connect
) -> None:
    first, second = await hub_client(), await hub_client()
    epoch = (await first.subscribe("open:1"))["epoch"]
    await apublish("open:1", "message", 1)
    await first.next_publication("open:1")
    os.kill(own_redis.process.pid, signal.SIGSTOP)

    result = await second.subscribe("open:1", since=Cursor(1, epoch))

    os.kill(own_redis.process.pid, signal.SIGCONT)
    assert (result["recovered"], result["offset"]) == (True, 1)
