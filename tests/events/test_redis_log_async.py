"""The Redis log for callers on an event loop: order, and what happens when Redis does not do its part."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers, get_channel_layer
from pytest_django import Settings

from notifications.events import Cursor, Topic, apublish, durable, publish, window
from notifications.events.event import new_event
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs import Draft, Log, log_for
from notifications.events.messages import group_of
from notifications.events.topics import registry, resolve
from tests.servers import RedisServer, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(tmp_path: Path, settings: Settings) -> Iterator[RedisServer]:
    """A Redis that the test may kill and freeze; the log is there, and the layer."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    running = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = running.url
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "notifications.events.redis_layer.RedisChannelLayer",
            "CONFIG": {"hosts": [running.url]},
        }
    }
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGCONT)
        running.stop()


@pytest.fixture
def topic() -> Iterator[None]:
    """Topics `long:<name>` that keep 10,000 events."""

    class LongTopic(Topic):
        pattern = "long:<name>"
        retention = window(size=10_000, seconds=300)

    registry.register(LongTopic)
    yield
    registry.unregister(LongTopic)


@pytest.fixture
def log(server: RedisServer, topic: None) -> Log:
    return log_for(resolve("long:a").retention)


def draft(number: int, topic: str = "long:a") -> Draft:
    return Draft(resolve(topic), new_event(topic=topic, type="message", data=number))


async def read(log: Log, topic: str = "long:a") -> list[int]:
    page = await log.aread(resolve(topic), since=None, limit=None)
    assert [event.offset for event in page.events] == list(range(1, len(page.events) + 1))
    return [event.decoded().data for event in page.events]


async def test_appends_of_many_coroutines_keep_their_orders(log: Log) -> None:
    async def append(first: int) -> None:
        appending: list[asyncio.Task[Any]] = []
        for number in range(first, first + 625):
            appending.append(asyncio.create_task(log.aappend([draft(number)])))
            if number % 50 == 0:
                await asyncio.gather(*appending)
        await asyncio.gather(*appending)

    await asyncio.gather(*(append(first) for first in range(0, 5_000, 625)))

    numbers = await read(log)
    assert sorted(numbers) == list(range(5_000))
    for first in range(0, 5_000, 625):
        assert [number for number in numbers if first <= number < first + 625] == list(range(first, first + 625))


async def test_each_append_returns_its_own_offset(log: Log) -> None:
    appended = await asyncio.gather(*(log.aappend([draft(n), draft(n, "long:b")]) for n in range(100)))

    assert [[one.event.offset for one in pair] for pair in appended] == [[n, n] for n in range(1, 101)]
    assert [[one.event.topic for one in pair] for pair in appended] == [["long:a", "long:b"]] * 100
    assert len({one.event.epoch for pair in appended for one in pair}) == 2


async def test_what_is_too_old_is_removed_and_hides_nothing_newer(server: RedisServer, topic: None) -> None:
    class BriefTopic(Topic):
        pattern = "brief:<name>"
        retention = window(size=10_000, seconds=1)

    registry.register(BriefTopic)
    brief = resolve("brief:a")
    log = log_for(brief.retention)
    published, oldest = 0, 1

    async with asyncio.timeout(10):
        while oldest < 4:
            published += 1
            await log.aappend([draft(published, brief.name)])
            (first,) = (await log.aread(brief, since=None, limit=1)).events
            oldest = first.offset or 0
            await asyncio.sleep(0.1)

    registry.unregister(BriefTopic)
    page = await log.aread(brief, since=None, limit=None)
    assert [event.offset for event in page.events] == list(range(page.events[0].offset or 0, published + 1))
    with redis.Redis.from_url(server.url) as observer:
        assert observer.xlen(f"hub:events:{brief.name}") == len(page.events)


async def test_a_cancelled_append_does_not_shift_the_others(log: Log) -> None:
    appending = [asyncio.create_task(log.aappend([draft(number)])) for number in range(200)]
    await asyncio.sleep(0)
    for task in appending[::3]:
        task.cancel()

    answers = await asyncio.gather(*appending, return_exceptions=True)

    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer[0].event.offset == number + 1  # type: ignore[index]
    assert await read(log) == list(range(200))


async def test_scripts_that_redis_forgot_are_sent_again_in_order(server: RedisServer, log: Log) -> None:
    await log.aappend([draft(0)])
    with redis.Redis.from_url(server.url) as observer:
        observer.script_flush()
        await asyncio.gather(*(log.aappend([draft(number)]) for number in range(1, 50)))
        observer.script_flush()

        assert await read(log) == list(range(50))
        observer.script_flush()
        assert (await log.aopen([resolve("long:a")]))["long:a"].offset == 50


async def test_a_restarted_redis_knows_the_scripts_before_the_first_append(server: RedisServer, log: Log) -> None:
    await log.aappend([draft(0)])
    server.process.kill()
    await asyncio.to_thread(server.process.wait)
    with pytest.raises(LogUnavailable):
        await log.aappend([draft(1)])
    await asyncio.to_thread(server.start)

    await asyncio.gather(*(log.aappend([draft(number)]) for number in range(2, 300)))

    assert await read(log) == list(range(2, 300))
    with redis.Redis.from_url(server.url) as observer:
        assert "errorstat_NOSCRIPT" not in observer.info("errorstats")


@pytest.mark.parametrize("way", ["killed", "frozen"])
async def test_everybody_who_waits_is_told_that_redis_is_gone(
    server: RedisServer, log: Log, settings: Settings, way: str
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    await log.aappend([draft(0)])
    server.process.send_signal(signal.SIGSTOP)
    waiting = [asyncio.create_task(log.aappend([draft(number)])) for number in range(20)]
    waiting.append(asyncio.create_task(log.aread(resolve("long:a"), since=None, limit=None)))  # type: ignore[arg-type]
    waiting.append(asyncio.create_task(log.apositions([resolve("long:a")])))  # type: ignore[arg-type]
    waiting.append(asyncio.create_task(log.aopen([resolve("long:a")])))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    if way == "killed":
        server.process.kill()

    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2)

    assert [type(answer) for answer in answers] == [LogUnavailable] * 23


async def test_one_refused_append_fails_alone(server: RedisServer, log: Log) -> None:
    with redis.Redis.from_url(server.url) as observer:
        observer.set("hub:position:long:broken", "no hash")
        before, broken, after = await asyncio.gather(
            log.aappend([draft(1)]),
            log.aappend([draft(2, "long:broken")]),
            log.aappend([draft(3)]),
            return_exceptions=True,
        )

    assert [type(answer) for answer in (before, broken, after)] == [list, LogUnavailable, list]
    assert await read(log) == [1, 3]
    with pytest.raises(LogUnavailable, match="WRONGTYPE"):
        await log.apositions([resolve("long:broken")])


async def test_what_a_cancelled_publisher_appended_is_announced_on_any_layer(
    server: RedisServer, log: Log, settings: Settings
) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    channel_layers.backends.clear()
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group_of("long:a"), channel)
    from notifications.events import messenger

    messenger.serve_from(asyncio.get_running_loop())
    appending = asyncio.create_task(log.aappend([draft(1)]))
    await asyncio.sleep(0)
    appending.cancel()

    message = await asyncio.wait_for(layer.receive(channel), 5)

    messenger.serve_from(None)
    assert (message["topic"], message["offset"]) == ("long:a", 1)
    assert appending.cancelled()


async def test_an_announcement_reaches_the_layer_in_its_own_format(server: RedisServer, topic: None) -> None:
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group_of("long:a"), channel)

    events = [await apublish("long:a", "message", number, exclude="client") for number in range(3)]

    received: list[dict[str, Any]] = []
    while len(received) < 3:
        received.append(await layer.receive(channel))
    assert [(message["offset"], message["epoch"], message["exclude"]) for message in received] == [
        (number, events[0].epoch, "client") for number in (1, 2, 3)
    ]


async def test_topics_are_opened_in_one_round_trip(server: RedisServer, log: Log) -> None:
    appended = await log.aappend([draft(1, "long:old")])
    names = [f"long:{number}" for number in range(100)]
    with redis.Redis.from_url(server.url) as observer:
        before: dict[str, Any] = observer.info("stats")  # type: ignore[assignment]
        opened = await log.aopen([resolve(name) for name in [*names, "long:old"]])
        after: dict[str, Any] = observer.info("stats")  # type: ignore[assignment]

    # What was written at once is more than Redis reads at once; it answers each reading, and the second INFO.
    assert after["total_writes_processed"] - before["total_writes_processed"] <= 3
    assert opened["long:old"] == Cursor(1, appended[0].event.epoch)
    assert [opened[name].offset for name in names] == [0] * 100
    assert len({opened[name].epoch for name in names}) == 100
    assert await log.aopen([resolve(name) for name in names]) == {name: opened[name] for name in names}
    assert (await log.aappend([draft(1, "long:7")]))[0].event.epoch == opened["long:7"].epoch


@pytest.fixture(params=["memory", "redis", "database"])
def any_log(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Callable[[], Log]]:
    """Topics `any:<name>` in the log of the parameter."""
    settings.HUB_SOCKET = ""
    if request.param == "redis":
        request.getfixturevalue("server")

    class AnyTopic(Topic):
        pattern = "any:<name>"
        retention = durable(days=1) if request.param == "database" else window(size=5, seconds=60)

    registry.register(AnyTopic)
    yield lambda: log_for(resolve("any:a").retention)
    registry.unregister(AnyTopic)


async def test_an_opened_topic_is_where_its_log_is(any_log: Callable[[], Log]) -> None:
    event = await apublish("any:used", "message", 1)
    topics = [resolve("any:used"), resolve("any:new")]

    opened = await any_log().aopen(topics)

    assert opened["any:used"] == Cursor(1, event.epoch)
    assert opened["any:new"].offset == 0
    assert opened["any:new"].epoch != ""
    for topic in topics:
        assert (await any_log().aread(topic, since=None, limit=0)).position == opened[topic.name]
    assert (await apublish("any:new", "message", 1)).epoch == opened["any:new"].epoch
    assert await any_log().aopen([]) == {}


def test_synchronous_and_asynchronous_publishers_share_a_topic(server: RedisServer, topic: None) -> None:
    async def publish_two() -> list[int | None]:
        return [(await apublish("long:a", "message", number)).offset for number in range(2)]

    offsets = [publish("long:a", "message", 0).offset, *asyncio.run(publish_two()), publish("long:a", "m", 0).offset]

    assert offsets == [1, 2, 3, 4]
