"""Clients that come back with cursors, thousands at once: what they get, and what that asks of the logs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from channels.layers import channel_layers
from django.db.backends.signals import connection_created
from pytest_django import Settings

from notifications.delivery.identity import ANONYMOUS
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events import Cursor, Topic, apublish, durable, messenger, threads, window
from notifications.events.event import encode, new_event
from notifications.events.logs import log_for
from notifications.events.messages import event_message, group_of
from notifications.events.models import StoredEvent, TopicHead
from notifications.events.threads import executor
from notifications.events.topics import registry, resolve
from notifications.testing.client import HubClient, MemoryTransport
from tests.servers import RedisServer, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]

HEAD = 60


class Anybodys(Topic):
    asks_only_identity = True

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True


class Stream(Anybodys):
    pattern = "stream:<name>"
    retention = window(size=1_000, seconds=300)


class Short(Anybodys):
    pattern = "short:<name>"
    retention = window(size=10, seconds=300)


class Value(Anybodys):
    pattern = "value:<name>"
    retention = window(size=1, seconds=300)
    recovery = "cache"


class Lasting(Anybodys):
    pattern = "lasting:<name>"
    retention = durable()


DECLARED = (Stream, Short, Value, Lasting)


@pytest.fixture(autouse=True)
def _declared(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    for declaration in DECLARED:
        registry.register(declaration)
    yield
    for declaration in DECLARED:
        registry.unregister(declaration)


def use_redis(settings: Settings, url: str) -> None:
    settings.HUB_REDIS_URL = url
    backend = "notifications.events.redis_layer.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [{"address": url}]}}}
    channel_layers.backends.clear()


class LogReads:
    """How often events were read from the streams of a Redis."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._client.flushall()

    def begin(self) -> None:
        self._client.config_resetstat()

    @property
    def number(self) -> int:
        found: dict[str, Any] = self._client.info("commandstats")  # type: ignore[assignment]
        return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("xrange", "xrevrange"))


@pytest.fixture
def log_reads(settings: Settings, redis_url: str) -> LogReads:
    use_redis(settings, redis_url)
    return LogReads(redis_url)


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may freeze and stop."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    use_redis(settings, server.url)
    yield server
    if server.process.poll() is None:
        os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


@pytest.fixture
async def switchboard() -> AsyncIterator[Switchboard]:
    yield await current_switchboard()
    await stop_current()


@pytest.fixture
def queries() -> Iterator[list[str]]:
    """The statements that threads of the hub execute from now on."""
    threads.close_all()
    found: list[str] = []

    def watch(connection: Any, **_: Any) -> None:
        def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("SELECT"):
                found.append(sql)
            return execute(sql, params, many, context)

        connection.execute_wrappers.append(note)

    connection_created.connect(watch)
    yield found
    connection_created.disconnect(watch)


class Returning:
    """A client that comes back to one topic with a cursor."""

    def __init__(self, switchboard: Switchboard, topic: str, since: Cursor) -> None:
        self.since = since
        self.topic = topic
        self.transport = MemoryTransport()
        self.session = Session(switchboard, CENTRIFUGE, self.transport, ANONYMOUS)
        self.session.opened()
        asked = {"channel": topic, "recover": True, "offset": since.offset, "epoch": since.epoch}
        self.session.feed('{"id":1,"connect":{}}\n' + msgspec.json.encode({"id": 2, "subscribe": asked}).decode())
        self.pushes: list[dict[str, Any]] = []
        self.reply: dict[str, Any] = {}

    def look(self) -> bool:
        """Take what has come; whether the subscription was answered."""
        while not self.transport.messages.empty():
            message = self.transport.messages.get_nowait()
            if message.get("id") == 2:
                self.reply = message
            elif "push" in message:
                self.pushes.append(message["push"])
        return bool(self.reply)

    @property
    def recovered(self) -> bool:
        return bool(self.reply["subscribe"].get("recovered"))

    @property
    def missed(self) -> list[int]:
        """The offsets of what the answer brought."""
        return [found["offset"] for found in self.reply["subscribe"].get("publications", [])]

    @property
    def live(self) -> list[int]:
        """The offsets of what came after the answer."""
        return [push["pub"]["offset"] for push in self.pushes if "pub" in push]

    @property
    def got(self) -> list[int]:
        return [*self.missed, *self.live]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def answered(clients: Iterable[Returning]) -> None:
    for client in clients:
        await until(client.look)


async def published(topic: str, number: int = HEAD) -> str:
    """Publish so many events; returns the epoch."""
    for index in range(number):
        event = await apublish(topic, "message", index + 1)
    return event.epoch


def after(since: int, *, head: int = HEAD) -> list[int]:
    return list(range(since + 1, head + 1))


# Storms: what they cost.


async def test_a_storm_reads_a_topic_once(log_reads: LogReads, switchboard: Switchboard) -> None:
    # No mark could forbid queries here; without a thread of the pools there are none.
    epoch = await published("stream:1")
    log_reads.begin()

    clients = [Returning(switchboard, "stream:1", Cursor(index % HEAD, epoch)) for index in range(2_000)]
    await answered(clients)

    assert log_reads.number == 1
    assert all(client.recovered for client in clients)
    assert [client.missed for client in clients] == [after(index % HEAD) for index in range(2_000)]
    assert [len(executor(purpose)._threads) for purpose in ("database", "log")] == [0, 0]


async def test_those_who_come_one_after_the_other_share_reads_as_well(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    log_reads.begin()

    clients = []
    for index in range(2_000):  # each of the first sixty has missed more than all before
        clients.append(Returning(switchboard, "stream:1", Cursor(max(0, HEAD - 1 - index), epoch)))
        await asyncio.sleep(0)
    await answered(clients)

    assert log_reads.number == 2
    assert [client.missed for client in clients] == [after(client.since.offset) for client in clients]


async def test_what_was_read_serves_those_who_come_when_it_was_answered(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    first = Returning(switchboard, "stream:1", Cursor(3, epoch))
    await answered([first])
    log_reads.begin()

    second = Returning(switchboard, "stream:1", Cursor(40, epoch))
    await answered([second])

    assert (second.missed, log_reads.number) == (after(40), 0)


async def test_a_storm_on_a_durable_topic_makes_a_handful_of_queries(
    queries: list[str], switchboard: Switchboard
) -> None:
    epoch = await published("lasting:1")
    queries.clear()

    clients = [Returning(switchboard, "lasting:1", Cursor(index % HEAD, epoch)) for index in range(2_000)]
    await answered(clients)

    # Position and epoch when the topic is opened, and the two with the events when it is read.
    assert len(queries) == 5
    assert all(client.missed == after(client.since.offset) for client in clients)


async def test_a_storm_on_durable_topics_of_their_own_makes_few_queries(
    queries: list[str], switchboard: Switchboard
) -> None:
    names, missed = [f"lasting:{number}" for number in range(1_000)], 3
    await TopicHead.objects.abulk_create([TopicHead(topic=name, offset=missed) for name in names], batch_size=200)
    rows = [
        StoredEvent(topic=name, offset=offset, type=event.type, time=event.time, encoded=encode(event))
        for name in names
        for offset in range(1, missed + 1)
        for event in [new_event(topic=name, type="message", data=offset)]
    ]
    await StoredEvent.objects.abulk_create(rows, batch_size=200)
    epoch = await published("lasting:other", 1)
    queries.clear()

    clients = [Returning(switchboard, name, Cursor(index % 3, epoch)) for index, name in enumerate(names)]
    await answered(clients)

    assert len(queries) < 40
    assert [client.missed for client in clients] == [after(index % 3, head=missed) for index in range(len(names))]


async def test_a_process_that_stopped_hears_nothing_more(log_reads: LogReads, redis_url: str) -> None:
    channel = (await current_switchboard()).channel.encode()
    with redis.Redis.from_url(redis_url) as observer:
        assert channel in observer.pubsub_channels()  # type: ignore[operator]

        await stop_current()

        await until(lambda: channel not in observer.pubsub_channels())  # type: ignore[operator]


@pytest.mark.parametrize("turns", range(10))
async def test_a_process_that_stops_while_the_log_is_read_leaves_no_command_waiting(turns: int) -> None:
    epoch = await published("short:1", 1)
    client = Returning(await current_switchboard(), "short:1", Cursor(0, epoch))
    for _ in range(turns):
        await asyncio.sleep(0)

    await stop_current()

    if client.session._task is not None:
        done, _ = await asyncio.wait([client.session._task], timeout=5)
        assert done


async def test_an_announcement_that_comes_twice_costs_nobody_an_event(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    client = Returning(switchboard, "short:1", Cursor())
    await answered([client])
    await published("short:1", 1)
    await until(lambda: client.look() and client.live == [1])
    (event,) = (await log_for(resolve("short:1").retention).aread(resolve("short:1"), since=None, limit=1)).events
    again = event_message(event, encode(event), None)

    # More is published beside it than the topic keeps.
    number = 13
    publishing = (apublish("short:1", "message", index) for index in range(number))
    await asyncio.gather(messenger.layer().group_send(group_of("short:1"), again), *publishing)
    await until(lambda: client.look() and len(client.live) > number)

    assert client.got == list(range(1, number + 2))
    assert all("unsubscribe" not in push for push in client.pushes)


async def test_who_is_ahead_of_this_process_is_not_told_of_a_loss(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    before = Returning(switchboard, "stream:1", Cursor(HEAD - 1, epoch))
    await answered([before])
    # Another process has handed an event on that this one has not heard of yet.
    await messenger.layer().group_discard(group_of("stream:1"), switchboard.channel)
    await published("stream:1", 1)

    ahead = Returning(switchboard, "stream:1", Cursor(HEAD + 1, epoch))
    await answered([ahead])

    assert (ahead.recovered, ahead.missed) == (True, [])


async def test_a_storm_on_a_cache_reads_it_once(log_reads: LogReads, switchboard: Switchboard) -> None:
    epoch = await published("value:1")
    log_reads.begin()

    clients = [Returning(switchboard, "value:1", Cursor(index % (HEAD + 1), epoch)) for index in range(1_000)]
    await answered(clients)

    assert log_reads.number == 1
    assert all(client.recovered for client in clients)
    assert [client.missed for client in clients] == [
        [] if client.since.offset == HEAD else [HEAD] for client in clients
    ]


# Storms: what they get.


async def test_what_is_published_meanwhile_is_neither_lost_nor_repeated(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    chosen, total = random.Random(5), HEAD + 150
    epoch = await published("stream:1")
    clients: list[Returning] = []

    async def come_back() -> None:
        while len(clients) < 400:
            clients.append(Returning(switchboard, "stream:1", Cursor(chosen.randrange(HEAD), epoch)))
            for _ in range(chosen.randrange(4)):
                await asyncio.sleep(0)

    coming = asyncio.create_task(come_back())
    for number in range(total - HEAD):
        await apublish("stream:1", "message", number)
    await coming
    await answered(clients)
    await until(lambda: all(client.look() and client.got[-1] == total for client in clients))

    assert all(client.recovered for client in clients)
    assert [client.got for client in clients] == [after(client.since.offset, head=total) for client in clients]


async def test_who_comes_while_a_read_is_on_its_way_gets_what_arrived_meanwhile(
    own_redis: RedisServer, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    early = Returning(switchboard, "stream:1", Cursor(0, epoch))
    await answered([early])
    switchboard.topics["stream:1"].recent._kept = None
    live = switchboard.topics["stream:1"]

    # The answer to this read is on its way when the next events arrive, and others come back.
    first = Returning(switchboard, "stream:1", Cursor(1, epoch))
    await until(lambda: live.recent._reading is not None)
    for number in range(5):
        await apublish("stream:1", "message", number)
    later = [Returning(switchboard, "stream:1", Cursor(HEAD - 1, epoch)) for _ in range(3)]
    await answered([first, *later])
    await until(
        lambda: all([*client.missed, *client.live][-1] == HEAD + 5 for client in (first, *later) if client.look())
    )

    assert first.got == after(1, head=HEAD + 5)
    assert [client.got for client in later] == [after(HEAD - 1, head=HEAD + 5)] * 3


@pytest.mark.parametrize("window", ["memory", "redis"])
async def test_who_reaches_further_back_than_the_window_is_told(
    request: pytest.FixtureRequest, settings: Settings, window: str
) -> None:
    if window == "redis":
        request.getfixturevalue("log_reads")
    switchboard = await current_switchboard()
    epoch = await published("short:1")

    clients = [Returning(switchboard, "short:1", Cursor(since, epoch)) for since in range(HEAD + 1)]
    await answered(clients)
    await stop_current()

    told = {client.since.offset: (client.recovered, client.missed) for client in clients}
    assert told == {since: (since >= 50, after(since) if since >= 50 else []) for since in range(HEAD + 1)}
    assert {client.reply["subscribe"]["offset"] for client in clients if not client.recovered} == {HEAD}


async def test_who_missed_more_than_the_limit_is_told_without_a_read(
    log_reads: LogReads, switchboard: Switchboard, settings: Settings
) -> None:
    settings.HUB_MAX_HISTORY = 20
    epoch = await published("stream:1")
    log_reads.begin()

    far = [Returning(switchboard, "stream:1", Cursor(since, epoch)) for since in range(39)]
    await answered(far)
    reads = log_reads.number
    near = [Returning(switchboard, "stream:1", Cursor(since, epoch)) for since in range(30, HEAD)]
    await answered(near)

    assert reads == 0
    assert not any(client.recovered for client in far)
    assert [client.recovered for client in near] == [since >= 40 for since in range(30, HEAD)]
    assert [client.missed for client in near if client.recovered] == [after(since) for since in range(40, HEAD)]


async def test_a_log_that_is_far_ahead_is_read_again(
    log_reads: LogReads, switchboard: Switchboard, settings: Settings
) -> None:
    settings.HUB_MAX_HISTORY = 20
    epoch = await published("stream:1")
    witness = Returning(switchboard, "stream:1", Cursor(HEAD, epoch))
    await answered([witness])
    live = switchboard.topics["stream:1"]
    live.position = Cursor(HEAD - 15, epoch)  # as if the layer had lost what announced the last fifteen

    clients = [Returning(switchboard, "stream:1", Cursor(since, epoch)) for since in (30, 38, 44)]
    await answered(clients)

    assert [(client.recovered, client.missed) for client in clients] == [
        (False, []),
        (False, []),
        (True, after(44)),
    ]


async def test_a_cursor_beyond_the_position_is_not_recovered(log_reads: LogReads, switchboard: Switchboard) -> None:
    epoch = await published("stream:1")

    client = Returning(switchboard, "stream:1", Cursor(HEAD + 5, epoch))
    await answered([client])

    assert (client.recovered, client.missed) == (False, [])


async def test_cursors_of_another_epoch_are_told_by_one_read(log_reads: LogReads, switchboard: Switchboard) -> None:
    await published("stream:1")
    log_reads.begin()

    clients = [Returning(switchboard, "stream:1", Cursor(index % HEAD, "another")) for index in range(1_000)]
    await answered(clients)

    assert log_reads.number == 1
    assert not any(client.recovered or client.missed for client in clients)


async def test_a_log_that_began_anew_outdates_all_who_come_back(log_reads: LogReads, switchboard: Switchboard) -> None:
    epoch = await published("stream:1")
    watching = Returning(switchboard, "stream:1", Cursor(HEAD, epoch))
    await answered([watching])
    log_reads._client.flushall()  # nobody has noticed yet

    clients = [Returning(switchboard, "stream:1", Cursor(index % HEAD, epoch)) for index in range(200)]
    await answered(clients)
    begun = await published("stream:1", 2)
    await until(lambda: all(client.look() and client.live == [1, 2] for client in clients))
    await until(lambda: watching.look() and any("unsubscribe" in push for push in watching.pushes))

    assert not any(client.recovered or client.missed for client in clients)
    assert {client.reply["subscribe"]["epoch"] for client in clients} == {begun}
    assert begun != epoch


async def test_who_has_seen_the_new_epoch_already_recovers_in_it(log_reads: LogReads, switchboard: Switchboard) -> None:
    epoch = await published("stream:1")
    await answered([Returning(switchboard, "stream:1", Cursor(HEAD, epoch))])
    live = switchboard.topics["stream:1"]
    live.position = Cursor(HEAD, "of before")  # what a process has that has not noticed

    client = Returning(switchboard, "stream:1", Cursor(7, epoch))
    await answered([client])

    assert (client.recovered, client.missed) == (True, after(7))


async def test_all_who_wait_are_told_that_the_log_is_away(
    own_redis: RedisServer, switchboard: Switchboard, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    epoch = await published("stream:1")
    await answered([Returning(switchboard, "stream:1", Cursor(HEAD, epoch))])
    os.kill(own_redis.process.pid, signal.SIGSTOP)

    clients = [Returning(switchboard, "stream:1", Cursor(index % HEAD, epoch)) for index in range(100)]
    await answered(clients)
    os.kill(own_redis.process.pid, signal.SIGCONT)
    again = Returning(switchboard, "stream:1", Cursor(7, epoch))
    await answered([again])

    assert {client.reply["error"]["code"] for client in clients} == {100}
    assert again.missed == after(7)


async def test_a_socket_that_goes_while_the_log_is_read_takes_nobody_along(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    clients = [Returning(switchboard, "stream:1", Cursor(index, epoch)) for index in range(20)]
    await until(lambda: "stream:1" in switchboard.topics)
    await until(lambda: switchboard.topics["stream:1"].recent._reading is not None)

    for client in clients[::2]:
        client.session.closed()
    await answered(clients[1::2])

    assert [client.missed for client in clients[1::2]] == [after(client.since.offset) for client in clients[1::2]]


async def test_what_is_kept_of_a_read_is_let_go(log_reads: LogReads, switchboard: Switchboard) -> None:
    epoch = await published("stream:1")
    await answered([Returning(switchboard, "stream:1", Cursor(7, epoch))])
    recent = switchboard.topics["stream:1"].recent

    kept = recent._kept is not None
    async with asyncio.timeout(5):
        while recent._kept is not None:
            await asyncio.sleep(0.05)

    assert kept


# The plain protocol.


class PlainClient:
    """A page with ten lines of JavaScript."""

    def __init__(self, switchboard: Switchboard, topic: str, since: str | None = None) -> None:
        from notifications.delivery.consumers import PlainConsumer

        consumer = PlainConsumer(topic)
        query = b"" if since is None else b"since=" + since.encode()
        consumer.scope = {"query_string": query, "url_route": {"kwargs": {}}}
        self.transport = MemoryTransport()
        self.session = Session(switchboard, consumer.protocol, self.transport, ANONYMOUS)
        consumer.prepare(self.session)
        self.session.opened()

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.transport.messages.get(), 5)


def bodies(messages: Sequence[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(message["type"], message.get("offset", message.get("complete"))) for message in messages]


async def test_a_plain_page_resumes_where_it_was(switchboard: Switchboard) -> None:
    page = PlainClient(switchboard, "stream:1")
    greeting = await page.next()
    await apublish("stream:1", "message", {"message": "one"})
    seen = (await page.next())["offset"]
    page.session.closed()
    await apublish("stream:1", "message", {"message": "two"})
    await apublish("stream:1", "message", {"message": "three"})

    back = PlainClient(switchboard, "stream:1", f"{greeting['epoch']}:{seen}")
    got = [await back.next() for _ in range(4)]
    await apublish("stream:1", "message", {"message": "four"})

    assert (greeting["type"], greeting["offset"]) == ("connection_established", 0)
    assert bodies(got) == [("connection_established", 1), ("chat", 2), ("chat", 3), ("resumed", True)]
    assert got[0]["epoch"] == greeting["epoch"]
    assert [message["message"] for message in got[1:3]] == ["two", "three"]
    assert (await back.next())["message"] == "four"


async def test_a_plain_page_that_missed_nothing_is_told_so(switchboard: Switchboard) -> None:
    epoch = await published("stream:1", 3)

    back = PlainClient(switchboard, "stream:1", f"{epoch}:3")

    assert bodies([await back.next(), await back.next()]) == [("connection_established", 3), ("resumed", True)]


@pytest.mark.parametrize("since", ["another:3", "{epoch}:70", "garbage", "{epoch}:x", "{epoch}:1", "a=b"])
async def test_a_plain_page_is_told_that_it_missed_something(switchboard: Switchboard, since: str) -> None:
    epoch = await published("short:1")

    back = PlainClient(switchboard, "short:1", since.format(epoch=epoch))
    got = [await back.next(), await back.next()]

    assert bodies(got) == [("connection_established", HEAD), ("resumed", False)]
    assert got[0]["epoch"] == epoch


async def test_a_plain_page_on_a_topic_that_keeps_nothing(switchboard: Switchboard) -> None:
    first = PlainClient(switchboard, "fleeting:1")
    back = PlainClient(switchboard, "fleeting:1", "x:3")

    assert (await first.next()).keys() == {"type", "message"}
    assert bodies([await back.next(), await back.next()]) == [("connection_established", None), ("resumed", False)]


async def test_a_plain_page_that_does_not_ask_is_not_told(switchboard: Switchboard) -> None:
    await published("stream:1", 3)
    page = PlainClient(switchboard, "stream:1")
    await page.next()

    await apublish("stream:1", "message", {"message": "live"})

    assert (await page.next())["type"] == "chat"


async def test_plain_pages_that_come_back_together_share_their_frames(
    log_reads: LogReads, switchboard: Switchboard
) -> None:
    epoch = await published("stream:1")
    log_reads.begin()
    pages = [PlainClient(switchboard, "stream:1", f"{epoch}:{index % HEAD}") for index in range(300)]

    for index, page in enumerate(pages):
        got = [await page.next() for _ in range(HEAD - index % HEAD + 2)]
        assert [message["offset"] for message in got[1:-1]] == after(index % HEAD)

    assert log_reads.number == 1
