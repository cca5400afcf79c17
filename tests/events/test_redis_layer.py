from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
import uvloop
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from notifications.events import messenger, metrics
from notifications.events.checks import check_channel_layer
from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_layer import RedisChannelLayer
from tests.servers import RedisServer, free_port, redis_server_binary, required

BACKEND = "notifications.events.redis_layer.RedisChannelLayer"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill and freeze."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    running = RedisServer(binary, tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGCONT)
        running.stop()


def kill(server: RedisServer) -> None:
    server.process.kill()
    server.process.wait(10)


@pytest.fixture
async def layer(server: RedisServer) -> AsyncIterator[RedisChannelLayer]:
    made = RedisChannelLayer(hosts=[server.url])
    yield made
    await made.flush()


@pytest.fixture
async def stock(server: RedisServer) -> AsyncIterator[RedisPubSubChannelLayer]:
    made = RedisPubSubChannelLayer(hosts=[server.url])
    yield made
    await made.flush()


@pytest.fixture
def observer(server: RedisServer) -> Iterator[redis.Redis]:
    """A client beside the layer. It blocks the loop, so that nothing of the layer can happen meanwhile."""
    client = redis.Redis.from_url(server.url, single_connection_client=True)
    yield client
    client.close()


def groups_in(observer: redis.Redis) -> set[str]:
    """The groups to which some connection is subscribed."""
    found = [name.decode() for name in observer.pubsub_channels()]  # type: ignore[union-attr]
    return {name.removeprefix("asgi__group__") for name in found if name.startswith("asgi__group__")}


def calls(observer: redis.Redis, name: str) -> int:
    """How often Redis was given a command."""
    stats: dict[str, Any] = observer.info("commandstats")  # type: ignore[assignment]
    return int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"])


async def until(condition: Callable[[], Any], *, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# The channel-layer API, and the stock layer beside it.


async def test_messages_arrive_in_their_order(layer: RedisChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("room", channel)

    for number in range(5):
        await layer.group_send("room", {"type": "said", "n": number, "bytes": b"\x00", "nested": {"a": [None, 1.5]}})
    first = await layer.receive(channel)
    rest = [await layer.receive(channel) for _ in range(4)]
    await layer.send(channel, {"type": "direct"})

    assert first == {"type": "said", "n": 0, "bytes": b"\x00", "nested": {"a": [None, 1.5]}}
    assert [message["n"] for message in rest] == [1, 2, 3, 4]
    assert await layer.receive(channel) == {"type": "direct"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix": "site"},
        {"serializer_format": "json"},
        {"symmetric_encryption_keys": ["secret"]},
    ],
)
async def test_the_stock_layer_and_this_one_understand_each_other(server: RedisServer, options: dict[str, Any]) -> None:
    ours = RedisChannelLayer(hosts=[server.url], **options)
    theirs = RedisPubSubChannelLayer(hosts=[{"address": server.url}], **options)
    our_channel, their_channel = await ours.new_channel("hub."), await theirs.new_channel()
    await ours.group_add("room", our_channel)
    await theirs.group_add("room", their_channel)
    await theirs.group_send("room", {"type": "from.them"})
    assert await ours.receive(our_channel) == {"type": "from.them"}
    assert await asyncio.wait_for(theirs.receive(their_channel), 5) == {"type": "from.them"}

    await ours.group_send("room", {"type": "from.us", "ü": "✓"})
    await theirs.send(our_channel, {"type": "direct"})

    assert await ours.receive(our_channel) == {"type": "from.us", "ü": "✓"}
    assert await ours.receive(our_channel) == {"type": "direct"}
    assert await theirs.receive(their_channel) == {"type": "from.us", "ü": "✓"}
    await ours.send(their_channel, {"type": "direct"})
    assert await theirs.receive(their_channel) == {"type": "direct"}
    await ours.flush()
    await theirs.flush()


async def test_what_is_used_of_channels_redis_is_still_there(server: RedisServer) -> None:
    """Fails when an upgrade of channels-redis changes what the layer and `messenger` build on."""
    from channels_redis.utils import create_pool, decode_hosts

    layer = RedisChannelLayer(hosts=[server.url], prefix="site")
    theirs = RedisPubSubLoopLayer(hosts=[server.url], prefix="site")

    assert isinstance(layer, RedisPubSubChannelLayer)
    assert layer._kwargs == {"hosts": [server.url], "prefix": "site"}
    assert type(layer._serializer).__name__ == "MsgPackSerializer"
    assert layer._serializer.crypter is None
    assert layer.serialize({"type": "x"}) == msgpack.packb({"type": "x"})
    assert layer.deserialize(msgpack.packb({"type": "x"})) == {"type": "x"}
    assert layer._here().group_channel("room").decode() == theirs._get_group_channel_name("room")
    assert decode_hosts(None) == [{"address": "redis://localhost:6379"}]
    assert decode_hosts(["redis://a", ("b", 1)]) == [{"address": "redis://a"}, {"host": "b", "port": 1}]
    assert create_pool({"address": "redis://a:1/2"}).make_connection().db == 2
    assert set(RedisPubSubChannelLayer.__dict__) >= {"__getattr__", "_get_layer", "serialize", "deserialize"}
    assert {name for name in vars(RedisPubSubLoopLayer) if not name.startswith("_")} == {
        *("send", "new_channel", "receive", "group_add", "group_discard", "group_send", "flush", "extensions")
    }


def test_a_publisher_writes_to_it_directly(server: RedisServer, settings: Settings) -> None:
    settings.HUB_REDIS_URL = server.url
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": {"hosts": [server.url]}}}

    assert messenger.redis_group_channel("room") == "asgi__group__room"

    async def receive() -> dict[str, Any]:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await asyncio.to_thread(messenger.send, "room", {"type": "x"})
        message: dict[str, Any] = await layer.receive(channel)
        return message

    assert asyncio.run(receive()) == {"type": "x"}


# Groups.


async def test_what_is_published_right_after_joining_arrives(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()

    for number in range(3_000):
        await layer.group_add(f"g{number}", channel)
        assert observer.publish(f"asgi__group__g{number}", msgpack.packb({"n": number})) == 1

    received: list[int] = []
    while len(received) < 3_000:
        received += [(await layer.receive(channel))["n"]]
    assert received == list(range(3_000))


async def test_ten_thousand_groups_take_ten_commands(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    groups = [f"g{number}" for number in range(10_000)]
    before = calls(observer, "subscribe")

    await layer.group_add_many(groups, channel)

    assert calls(observer, "subscribe") - before == 10
    assert groups_in(observer) == set(groups)
    publishing = observer.pipeline(transaction=False)
    for number in range(10_000):
        publishing.publish(f"asgi__group__g{number}", msgpack.packb({"n": number}))
    assert publishing.execute() == [1] * 10_000
    received: list[int] = []
    while len(received) < 10_000:
        received += [(await layer.receive(channel))["n"]]
    assert received == list(range(10_000))
    await layer.group_discard_many(groups, channel)
    await until(lambda: not groups_in(observer))
    assert calls(observer, "unsubscribe") == 10


async def test_joins_of_one_turn_share_a_command(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    before = calls(observer, "subscribe")

    await asyncio.gather(*(layer.group_add(f"g{number}", channel) for number in range(500)))

    assert calls(observer, "subscribe") - before == 1
    assert len(groups_in(observer)) == 500


async def test_joining_a_joined_group_asks_nothing_of_redis(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    one, two = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("room", one)
    before = calls(observer, "subscribe")

    await layer.group_add("room", one)
    await layer.group_add("room", two)
    await layer.group_send("room", {"type": "x"})

    assert calls(observer, "subscribe") == before
    assert await layer.receive(one) == await layer.receive(two) == {"type": "x"}


async def test_who_joins_a_group_that_is_being_joined_waits_as_well(
    layer: RedisChannelLayer, observer: redis.Redis
) -> None:
    one, two = await layer.new_channel(), await layer.new_channel()
    joining = asyncio.create_task(layer.group_add("room", one))
    await asyncio.sleep(0)

    await layer.group_add("room", two)

    assert observer.publish("asgi__group__room", msgpack.packb({"type": "x"})) == 1
    await joining


async def test_the_last_word_on_a_membership_counts(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    chance = random.Random(3)
    channels = [await layer.new_channel() for _ in range(3)]
    members: dict[str, set[str]] = {f"g{number}": set() for number in range(6)}
    pending: list[asyncio.Task[None]] = []
    for _ in range(1_000):
        group, channel = chance.choice(list(members)), chance.choice(channels)
        if chance.random() < 0.5:
            pending.append(asyncio.create_task(layer.group_add(group, channel)))
            members[group].add(channel)
        else:
            pending.append(asyncio.create_task(layer.group_discard(group, channel)))
            members[group].discard(channel)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0.001]))
    await asyncio.gather(*pending)

    assert layer._here()._subscriber.settled
    await until(lambda: groups_in(observer) == {group for group, joined in members.items() if joined})
    for group in members:
        await layer.group_send(group, {"group": group})
    for channel in channels:
        await layer.send(channel, {"group": "own"})
        received: list[str] = []
        while received[-1:] != ["own"]:
            received += [(await layer.receive(channel))["group"]]
        assert received == [*(group for group, joined in members.items() if channel in joined), "own"]


async def test_only_channels_of_this_process_can_join(layer: RedisChannelLayer) -> None:
    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("room", "asgispecific.of.another")


async def test_a_refused_group_does_not_hurt_the_others(server: RedisServer, observer: redis.Redis) -> None:
    observer.execute_command(
        "ACL", "SETUSER", "ana", "on", ">secret", "~*", "+@all", "resetchannels", "&asgispecific*", "&asgi__group__a*"
    )
    layer = RedisChannelLayer(hosts=[f"redis://ana:secret@127.0.0.1:{server.port}"])
    channel = await layer.new_channel()

    with pytest.raises(LogUnavailable, match=r"NOPERM|permissions"):
        await layer.group_add("b", channel)
    await layer.group_add("a", channel)
    await layer.group_send("a", {"type": "x"})

    assert await layer.receive(channel) == {"type": "x"}
    assert groups_in(observer) == {"a"}
    await layer.flush()


def test_a_group_of_one_member_is_small(server: RedisServer) -> None:
    async def bytes_per_group(layer: Any, groups: list[str]) -> float:
        channel = await layer.new_channel()
        await layer.group_add("first", channel)
        gc.collect()
        tracemalloc.start()
        if isinstance(layer, RedisChannelLayer):
            await layer.group_add_many(groups, channel)
        else:
            for group in groups:
                await layer.group_add(group, channel)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await layer.flush()
        return used / len(groups)

    groups = [f"hub.orders.{number}" for number in range(10_000)]
    ours = asyncio.run(bytes_per_group(RedisChannelLayer(hosts=[server.url]), groups))
    theirs = asyncio.run(bytes_per_group(RedisPubSubChannelLayer(hosts=[server.url]), groups[:2_000]))

    # The name of the Redis channel, and an entry of a dict.
    assert ours < 110
    assert ours < theirs / 4


# Trouble.


async def test_receiving_goes_on_when_redis_was_killed(
    server: RedisServer, layer: RedisChannelLayer, observer: redis.Redis
) -> None:
    channel = await layer.new_channel()
    groups = {f"g{number}" for number in range(2_500)}
    await layer.group_add_many(groups, channel)
    subscribed_when_told: list[set[str]] = []

    def told() -> None:
        with redis.Redis.from_url(server.url) as client:
            subscribed_when_told.append(groups_in(client))

    layer.add_reconnect_listener(told)
    for restarts in (1, 2):
        receiving = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await asyncio.to_thread(kill, server)
        await layer.group_discard("g0", channel)
        groups.discard("g0")
        await asyncio.to_thread(server.start)
        await until(lambda restarts=restarts: len(subscribed_when_told) == restarts)
        await layer.group_send("g1", {"restarts": restarts})
        assert await receiving == {"restarts": restarts}
    layer.remove_reconnect_listener(told)

    assert subscribed_when_told == [groups, groups]


async def test_a_connection_that_redis_ends_is_made_again(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    told = asyncio.Event()
    layer.add_reconnect_listener(told.set)

    assert observer.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
    await asyncio.wait_for(told.wait(), 1)
    await layer.group_send("room", {"type": "x"})

    assert await layer.receive(channel) == {"type": "x"}


async def test_a_listener_that_fails_does_not_hurt_the_others(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    await layer.new_channel()
    told = asyncio.Event()
    layer.add_reconnect_listener(fail)
    layer.add_reconnect_listener(told.set)

    observer.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    await asyncio.wait_for(told.wait(), 5)


async def test_a_connection_that_fell_silent_is_noticed_within_seconds(server: RedisServer, settings: Settings) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    layer = RedisChannelLayer(hosts=[server.url], on_disconnect="redis.lost", on_reconnect="redis.back")
    channel = await layer.new_channel()
    await layer.group_add("room", channel)

    server.process.send_signal(signal.SIGSTOP)
    lost = await asyncio.wait_for(layer.receive(channel), 5)
    server.process.send_signal(signal.SIGCONT)
    back = await asyncio.wait_for(layer.receive(channel), 5)
    await layer.group_send("room", {"type": "after"})

    assert (lost, back) == ({"type": "redis.lost"}, {"type": "redis.back"})
    assert await layer.receive(channel) == {"type": "after"}
    await layer.flush()


async def test_an_idle_layer_is_not_taken_for_a_lost_one(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    told: list[None] = []
    layer.add_reconnect_listener(lambda: told.append(None))
    alone = {asyncio.current_task()}

    assert asyncio.all_tasks() == alone
    await until(lambda: calls(observer, "ping") >= 2)
    await layer.send(channel, {"type": "x"})

    assert await layer.receive(channel) == {"type": "x"}
    assert told == []
    assert asyncio.all_tasks() == alone


async def test_without_redis_joining_and_sending_raise_in_time(
    server: RedisServer, layer: RedisChannelLayer, settings: Settings
) -> None:
    channel = await layer.new_channel()
    await layer.group_add("before", channel)
    await asyncio.to_thread(kill, server)
    loop = asyncio.get_running_loop()
    begun = loop.time()

    for failing in (
        layer.group_add("during", channel),
        layer.group_add("before", channel),
        layer.group_send("before", {"type": "x"}),
        layer.new_channel(),
    ):
        with pytest.raises(LogUnavailable):
            await failing
    await layer.group_discard("never", channel)
    took = loop.time() - begun
    await asyncio.to_thread(server.start)
    with redis.Redis.from_url(server.url) as client:
        await until(lambda: groups_in(client) == {"before"})
        assert len(client.pubsub_channels()) == 2  # type: ignore[arg-type]
    await layer.group_add("during", channel)
    await layer.group_send("during", {"type": "x"})

    assert took < 2
    assert await layer.receive(channel) == {"type": "x"}


async def test_a_frozen_redis_fails_those_who_join_and_they_are_no_members(
    server: RedisServer, layer: RedisChannelLayer, observer: redis.Redis, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    channel = await layer.new_channel()
    await layer.group_add("before", channel)
    server.process.send_signal(signal.SIGSTOP)

    answers = await asyncio.gather(*(layer.group_add(f"g{n}", channel) for n in range(20)), return_exceptions=True)
    server.process.send_signal(signal.SIGCONT)

    assert [type(answer) for answer in answers] == [LogUnavailable] * 20
    await until(lambda: layer._here()._subscriber.settled)
    await until(lambda: groups_in(observer) == {"before"})
    await layer.group_add("g1", channel)
    assert observer.publish("asgi__group__g1", msgpack.packb({"type": "x"})) == 1


async def test_a_cancelled_join_leaves_those_of_its_turn_alone(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    joining = [asyncio.create_task(layer.group_add(f"g{number}", channel)) for number in range(10)]
    await asyncio.sleep(0)
    for task in joining[::2]:
        task.cancel()

    answers = await asyncio.gather(*joining, return_exceptions=True)

    assert [answer is None for answer in answers] == [False, True] * 5
    await until(lambda: groups_in(observer) == {f"g{number}" for number in range(1, 10, 2)})


async def test_a_first_connection_that_fails_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.all_tasks()
    layer = RedisChannelLayer(hosts=[f"redis://127.0.0.1:{free_port()}"])

    for _ in range(3):
        with pytest.raises(LogUnavailable):
            await layer.new_channel()
    await layer.flush()

    assert asyncio.all_tasks() == before


# Channels.


async def test_who_does_not_read_loses_the_oldest_and_is_told(
    server: RedisServer, observer: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "notifications.events.redis_layer")
    layer = RedisChannelLayer(hosts=[server.url], capacity=10)
    channel, other = await layer.new_channel(), await layer.new_channel()
    told: list[None] = []
    layer.add_reconnect_listener(lambda: told.append(None))
    lost = metrics.layer_messages_lost._value.get()

    for number in range(25):
        await layer.send(channel, {"n": number})
    await layer.send(other, {"n": "after"})
    assert await layer.receive(other) == {"n": "after"}
    messages = [await layer.receive(channel) for _ in range(10)]
    await asyncio.sleep(0)

    assert [message["n"] for message in messages] == list(range(15, 25))
    assert metrics.layer_messages_lost._value.get() - lost == 15
    assert len(told) == 1
    assert [record.message for record in caplog.records] == [
        f"channel {channel} is not read: it loses its oldest messages",
        f"channel {channel} lost 15 messages",
    ]
    await layer.flush()


async def test_what_cannot_be_decoded_is_left_out(
    layer: RedisChannelLayer, observer: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    channel = await layer.new_channel()
    received: list[dict[str, Any]] = []
    await layer.receive_by(channel, received.append)

    for data in (b"\xc1", msgpack.packb({"n": 1}), b"", msgpack.packb({"n": 2})):
        observer.publish(channel, data)
    await until(lambda: len(received) == 2)

    assert received == [{"n": 1}, {"n": 2}]
    assert [record.message for record in caplog.records] == ["a message of the channel layer cannot be decoded"] * 2


async def test_a_receiver_gets_what_has_waited_and_then_what_comes(layer: RedisChannelLayer) -> None:
    channel, other = await layer.new_channel(), await layer.new_channel()
    for number in range(3):
        await layer.send(channel, {"n": number})
    await layer.send(other, {"n": "after"})
    await layer.receive(other)
    received: list[int] = []

    await layer.receive_by(channel, lambda message: received.append(message["n"]))

    assert received == [0, 1, 2]
    for number in range(3, 6):
        await layer.send(channel, {"n": number})
    await until(lambda: len(received) == 6)
    assert received == [0, 1, 2, 3, 4, 5]


async def test_a_receiver_that_fails_gets_the_next_message_all_the_same(
    layer: RedisChannelLayer, caplog: pytest.LogCaptureFixture
) -> None:
    channel = await layer.new_channel()
    received: list[int] = []

    def receive(message: dict[str, Any]) -> None:
        received.append(message["n"])
        if message["n"] == 1:
            raise ValueError("no")

    await layer.receive_by(channel, receive)
    for number in (1, 2):
        await layer.send(channel, {"n": number})
    await until(lambda: len(received) == 2)

    assert received == [1, 2]
    assert [record.message for record in caplog.records] == ["a message of the channel layer could not be handled"]


async def test_who_ends_receiving_gives_the_channel_up(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    received: list[dict[str, Any]] = []
    end = await layer.receive_by(channel, received.append)

    end()

    await until(lambda: observer.pubsub_channels() == [])
    assert observer.publish(channel, msgpack.packb({"n": 1})) == 0
    assert received == []


async def test_a_receiver_hears_on_when_redis_is_back(layer: RedisChannelLayer, server: RedisServer) -> None:
    channel = await layer.new_channel()
    received: list[dict[str, Any]] = []
    told: list[None] = []
    layer.add_reconnect_listener(lambda: told.append(None))
    await layer.receive_by(channel, received.append)

    await asyncio.to_thread(kill, server)
    await asyncio.to_thread(server.start)
    await until(lambda: told == [None])
    await layer.send(channel, {"n": 1})

    await until(lambda: received == [{"n": 1}])


async def test_who_stops_receiving_gives_the_channel_up(layer: RedisChannelLayer, observer: redis.Redis) -> None:
    channel = await layer.new_channel()
    await layer.group_add("room", channel)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.receive(channel), 0.01)
    await until(lambda: channel.encode() not in observer.pubsub_channels())  # type: ignore[operator]
    # The group finds out with its next message, as nobody may discard it any more.
    observer.publish("asgi__group__room", msgpack.packb({"type": "x"}))

    await until(lambda: observer.pubsub_channels() == [])
    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("room", channel)


async def test_two_receivers_of_a_channel_share_its_messages(layer: RedisChannelLayer) -> None:
    channel = await layer.new_channel()
    receiving = [asyncio.create_task(layer.receive(channel)) for _ in range(4)]
    await asyncio.sleep(0)

    for number in range(4):
        await layer.send(channel, {"n": number})
    received = await asyncio.wait_for(asyncio.gather(*receiving), 5)

    assert sorted(message["n"] for message in received) == [0, 1, 2, 3]


async def test_a_channel_with_a_name_of_its_own_is_received_from(layer: RedisChannelLayer) -> None:
    receiving = asyncio.create_task(layer.receive("thumbnails"))
    await until(lambda: layer._here()._subscriber.settled)

    await layer.send("thumbnails", {"type": "make"})

    assert await receiving == {"type": "make"}


# The ends of layers and loops.


async def test_flush_leaves_nothing_and_the_layer_can_be_used_again(
    layer: RedisChannelLayer, observer: redis.Redis
) -> None:
    before = asyncio.all_tasks()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"type": "x"})
    assert len(observer.client_list()) == 3  # type: ignore[arg-type]

    await layer.flush()

    assert asyncio.all_tasks() == before
    await until(lambda: len(observer.client_list()) == 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("room", channel)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "again"})
    assert await layer.receive(channel) == {"type": "again"}


async def test_flush_ends_a_search_for_redis(server: RedisServer) -> None:
    before = asyncio.all_tasks()
    layer = RedisChannelLayer(hosts=[server.url])
    await layer.new_channel()
    await asyncio.to_thread(kill, server)
    await until(lambda: asyncio.all_tasks() != before)

    await layer.flush()

    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_layer_serves_many_loops_and_ends_with_each(
    server: RedisServer, observer: redis.Redis, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    layer = RedisChannelLayer(hosts=[server.url])

    async def use() -> None:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.group_send("room", {"type": "x"})
        assert await layer.receive(channel) == {"type": "x"}

    observer.ping()
    new_loop().close()  # the first loop of uvloop opens a pipe for the whole process
    gc.collect()
    open_before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(15):
            loop = new_loop()
            loop.run_until_complete(use())
            loop.close()
            async_to_sync(use)()
        gc.collect()

    assert [str(warning.message) for warning in warned] == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert len(layer._of_loop) == 1
    assert len(observer.client_list()) == 1  # type: ignore[arg-type]


# Configuration.


def test_an_attribute_that_is_not_there_makes_no_stock_layer(server: RedisServer) -> None:
    layer = RedisChannelLayer(hosts=[server.url])

    assert not hasattr(layer, "hub_unbridged_group_send")
    assert layer.extensions == ["groups", "flush"]
    assert layer._layers == {}


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        (["redis://a", "redis://b"], "it takes one Redis, not 2"),
        ([{"sentinels": [("a", 26379)], "master_name": "main"}], "it does not ask Redis Sentinel"),
        (["http://a"], "redis://"),
        ("redis://a", "must pass a list"),
    ],
)
def test_hosts_that_it_cannot_use_stop_the_start_and_the_cure_is_named(
    settings: Settings, hosts: Any, reason: str
) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": {"hosts": hosts}}}

    (error,) = check_channel_layer()

    assert error.id == "hub.E009"
    assert reason in error.msg
    assert "channels_redis.pubsub.RedisPubSubChannelLayer" in (error.hint or "")
    with pytest.raises((ImproperlyConfigured, ValueError), match=r"RedisPubSubChannelLayer|must pass a list"):
        RedisChannelLayer(hosts=hosts)


def test_hosts_that_it_can_use_pass_the_check(settings: Settings) -> None:
    for hosts in (None, ["redis://a"], [("a", 1)], [{"address": "unix:///a?db=1", "health_check_interval": 30}]):
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": {"hosts": hosts}}}

        assert check_channel_layer() == []
