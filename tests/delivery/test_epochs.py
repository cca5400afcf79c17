"""Logs that were put back to older data: the offsets are given again, and every client is told that they are others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from django.core.management import CommandError, call_command
from pytest_django import Settings

from notifications.delivery.switchboard import current_switchboard
from notifications.events import Cursor, apublish, publish
from notifications.events.exceptions import LogUnavailable
from notifications.events.logs.epochs import begin_epoch, notice_restore
from notifications.events.models import StoredEvent, TopicHead
from notifications.events.relay import Relay
from notifications.events.selectors import position
from notifications.testing.client import HubClient
from tests.events.outbox import kept, leave_behind
from tests.servers import RedisServer, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def use_redis(settings: Settings, url: str) -> None:
    settings.HUB_REDIS_URL = url
    backend = "notifications.events.redis_layer.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [{"address": url}]}}}
    channel_layers.backends.clear()


class OwnRedis(RedisServer):
    """A Redis whose data a test puts back."""

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def dumped(self) -> dict[bytes, bytes]:
        """What a back-up would have."""
        keys: Any = self.client.keys("hub:*")
        return {key: self.client.dump(key) for key in keys}  # type: ignore[misc]

    def restore(self, back_up: dict[bytes, bytes]) -> None:
        for key, value in back_up.items():
            self.client.restore(key, 0, value, replace=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Path) -> Iterator[OwnRedis]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = OwnRedis(binary, tmp_path)
    use_redis(settings, server.url)
    yield server
    if server.process.poll() is None:
        server.stop()


async def published(topic: str, number: int) -> Cursor:
    """Publish so many events; returns the position."""
    for index in range(number):
        event = await apublish(topic, "message", index)
    return event.cursor


async def told_to_recover(client: HubClient, topic: str) -> None:
    """Wait until the client is told that it missed events."""
    while True:
        push = await client.next_push()
        if push.get("channel") == topic and "unsubscribe" in push:
            assert push["unsubscribe"]["code"] == 2500
            return


# Redis, while somebody watches.


async def test_subscribers_are_told_when_keys_are_put_back(
    own_redis: OwnRedis, hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.1
    client = await hub_client()
    await client.subscribe("open:1")
    await published("open:1", 3)
    back_up = own_redis.dumped()
    cursor = await published("open:1", 3)

    own_redis.restore(back_up)
    await told_to_recover(client, "open:1")
    again = await client.subscribe("open:1", since=cursor)

    assert (again.get("recovered", False), again["offset"]) == (False, 3)
    assert again["epoch"] != cursor.epoch


async def test_an_offset_that_is_given_twice_is_noticed_at_once(
    own_redis: OwnRedis, hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 3_600
    client = await hub_client()
    await client.subscribe("open:1")
    await published("open:1", 3)
    back_up = own_redis.dumped()
    cursor = await published("open:1", 3)
    for _ in range(6):
        await client.next_publication("open:1")

    own_redis.restore(back_up)
    await apublish("open:1", "message", "another fourth")
    await told_to_recover(client, "open:1")
    await published("open:1", 5)
    again = await client.subscribe("open:1", since=cursor)

    assert not again.get("recovered", False)
    assert again["epoch"] != cursor.epoch


async def test_who_comes_back_to_a_topic_that_was_put_back_is_told(
    own_redis: OwnRedis, hub_client: Connect, settings: Settings
) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 3_600
    watching, client = await hub_client(), await hub_client()
    await watching.subscribe("open:1")
    await published("open:1", 3)
    back_up = own_redis.dumped()
    cursor = await published("open:1", 3)
    for _ in range(6):
        await watching.next_publication("open:1")

    own_redis.restore(back_up)
    await client.subscribe("open:1", since=Cursor(2, cursor.epoch))
    await told_to_recover(client, "open:1")
    await told_to_recover(watching, "open:1")

    assert (await watching.subscribe("open:1"))["epoch"] != cursor.epoch


# Redis, while nobody does.


async def test_a_restart_with_older_data_begins_new_epochs(own_redis: OwnRedis, hub_client: Connect) -> None:
    await published("open:1", 3)
    own_redis.client.save()
    cursor = await published("open:1", 5)
    own_redis.kill()
    own_redis.start()

    # Nobody was connected; meanwhile others publish more than was lost.
    after = await asyncio.to_thread(lambda: [publish("open:1", "message", "other") for _ in range(6)][-1])
    client = await hub_client()
    result = await client.subscribe("open:1", since=cursor)

    assert (cursor.offset, after.offset) == (8, 9)
    assert (result.get("recovered", False), result["offset"]) == (False, 9)
    assert result["epoch"] == after.epoch != cursor.epoch


async def test_subscribers_are_told_of_a_restart_with_older_data(own_redis: OwnRedis, hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")
    await published("open:1", 3)
    own_redis.client.save()
    cursor = await published("open:1", 5)
    for _ in range(8):
        await client.next_publication("open:1")

    own_redis.kill()
    own_redis.start()
    await told_to_recover(client, "open:1")
    again = await client.subscribe("open:1", since=cursor)

    assert (again.get("recovered", False), again["offset"]) == (False, 3)


async def test_what_a_restart_kept_is_still_there(own_redis: OwnRedis, hub_client: Connect) -> None:
    before = await published("open:1", 3)
    own_redis.client.save()
    own_redis.kill()
    own_redis.start()

    client = await hub_client()
    result = await client.subscribe("open:1", since=Cursor(1, before.epoch))
    anew = await client.command("history", channel="open:1", limit=10)
    more = await apublish("open:1", "message", "next")

    # All epochs begin anew: whether something is missing cannot be known.
    assert not result.get("recovered", False)
    assert [found["offset"] for found in anew["publications"]] == [1, 2, 3]
    assert more.cursor == Cursor(4, result["epoch"])


async def test_a_replica_that_takes_over_begins_new_epochs(
    own_redis: OwnRedis, hub_client: Connect, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "replica").mkdir()
    replica = OwnRedis(own_redis.binary, tmp_path / "replica")
    await published("open:1", 3)
    replica.client.replicaof("127.0.0.1", own_redis.port)
    async with asyncio.timeout(10):
        while not replica.client.exists("hub:position:open:1"):
            await asyncio.sleep(0.02)
    own_redis.client.replicaof("NO", "ONE")
    replica.client.replicaof("NO", "ONE")  # from here on it misses what the other is told
    cursor = await published("open:1", 5)

    use_redis(settings, replica.url)
    more = [(await apublish("open:1", "message", "other")).cursor for _ in range(6)][-1]
    client = await hub_client()
    result = await client.subscribe("open:1", since=cursor)
    replica.stop()

    assert (cursor.offset, more.offset) == (8, 9)
    assert not result.get("recovered", False)
    assert result["epoch"] == more.epoch != cursor.epoch


async def test_new_connections_to_the_same_redis_change_nothing(own_redis: OwnRedis, hub_client: Connect) -> None:
    cursor = await published("open:1", 3)
    for _ in range(2):
        thread = threading.Thread(target=publish, args=("open:1", "message", "from a thread of its own"))
        thread.start()
        await asyncio.to_thread(thread.join)
    own_redis.client.client_kill_filter(_type="normal", skipme=True)
    client = await hub_client()

    result = await client.subscribe("open:1", since=cursor)

    assert result["recovered"] is True
    assert [found["offset"] for found in result["publications"]] == [4, 5]


async def test_a_flushed_redis_and_a_new_connection_change_an_epoch_once(
    own_redis: OwnRedis, hub_client: Connect
) -> None:
    before = await published("open:1", 3)
    own_redis.client.flushall()
    begun = await published("open:1", 1)
    own_redis.client.client_kill_filter(_type="normal", skipme=True)

    after = await asyncio.to_thread(publish, "open:1", "message", "on a new connection")

    assert before.epoch != begun.epoch
    assert after.cursor == Cursor(2, begun.epoch)


# What a client says of where it was. It is told at once when the log is not there, and believed in nothing else: an
# epoch that begins makes every client of the durable topics read anew, which is not for one of them to bring about.

BEYOND = [4, 1_000, 2**63 - 1]


@pytest.fixture(params=["memory", "redis", "database"])
def kept_topic(request: pytest.FixtureRequest) -> str:
    """A topic whose events are kept in each of the logs."""
    if request.param == "redis":
        request.getfixturevalue("own_redis")
    return "ledger:1" if request.param == "database" else "open:1"


@pytest.mark.parametrize("offset", BEYOND)
async def test_a_cursor_beyond_the_log_is_not_recovered(hub_client: Connect, kept_topic: str, offset: int) -> None:
    cursor = await published(kept_topic, 3)
    client = await hub_client()

    result = await client.subscribe(kept_topic, since=Cursor(offset, cursor.epoch))
    after = await apublish(kept_topic, "message", "next")
    push = await client.next_publication(kept_topic)

    assert (result.get("recovered", False), result["offset"], result["epoch"]) == (False, 3, cursor.epoch)
    assert result.get("publications", []) == []
    assert (push["offset"], after.cursor) == (4, Cursor(4, cursor.epoch))


async def test_cursors_that_were_made_up_are_nobody_elses_concern(hub_client: Connect, kept_topic: str) -> None:
    watching, inventing, resuming = [await hub_client() for _ in range(3)]
    await watching.subscribe(kept_topic)
    cursor = await published(kept_topic, 3)
    seen = [(await watching.next_publication(kept_topic))["offset"] for _ in range(3)]

    for offset in BEYOND * 3:
        invented = await inventing.subscribe(kept_topic, since=Cursor(offset, cursor.epoch))
        assert not invented.get("recovered", False)
        await inventing.command("unsubscribe", channel=kept_topic)
    resumed = await resuming.subscribe(kept_topic, since=Cursor(1, cursor.epoch))
    after = await apublish(kept_topic, "message", "next")
    push = await watching.next_push()

    assert seen == [1, 2, 3]
    assert resumed["recovered"] is True
    assert [found["offset"] for found in resumed["publications"]] == [2, 3]
    # The next thing that the others hear of the topic is its next event, in the same epoch.
    assert (push["channel"], push["pub"]["offset"]) == (kept_topic, 4)
    assert after.epoch == cursor.epoch


# The database.


async def test_a_database_that_was_put_back_while_all_was_stopped_tells_who_comes_before_it_has_grown(
    hub_client: Connect,
) -> None:
    cursor = await published("ledger:1", 6)
    await asyncio.to_thread(put_back, 3)

    client = await hub_client()
    result = await client.subscribe("ledger:1", since=cursor)
    other = await published("ledger:1", 5)
    received = [(await client.next_publication("ledger:1"))["offset"] for _ in range(5)]

    assert (result.get("recovered", False), result["offset"]) == (False, 3)
    assert (received, other.offset) == ([4, 5, 6, 7, 8], 8)


async def test_newepoch_before_the_start_tells_who_comes_after_it_has_grown(hub_client: Connect) -> None:
    cursor = await published("ledger:1", 6)
    await asyncio.to_thread(put_back, 3)

    await asyncio.to_thread(call_command, "newepoch", stdout=StringIO())
    other = await published("ledger:1", 5)
    client = await hub_client()
    result = await client.subscribe("ledger:1", since=cursor)

    assert (cursor.offset, other.offset) == (6, 8)
    assert (result.get("recovered", False), result["offset"]) == (False, 8)
    assert result["epoch"] == other.epoch != cursor.epoch


async def test_subscribers_are_told_when_rows_are_put_back(hub_client: Connect, settings: Settings) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.1
    client = await hub_client()
    await client.subscribe("ledger:1")
    cursor = await published("ledger:1", 6)
    for _ in range(6):
        await client.next_publication("ledger:1")

    await asyncio.to_thread(put_back, 3)
    await told_to_recover(client, "ledger:1")
    other = await published("ledger:1", 5)
    again = await client.subscribe("ledger:1", since=cursor)

    assert other.offset == 8
    assert not again.get("recovered", False)
    assert again["epoch"] == other.epoch != cursor.epoch


def put_back(offset: int) -> None:
    """Put ledger:1 back to an offset, as a restore does."""
    StoredEvent.objects.filter(topic="ledger:1", offset__gt=offset).delete()
    TopicHead.objects.filter(pk="ledger:1").update(offset=offset)


@pytest.fixture(params=["redis", "file"])
def remembering(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> None:
    """A hub that remembers in Redis, or in a file, how far the durable log has come."""
    if request.param == "redis":
        request.getfixturevalue("own_redis")
    else:
        settings.HUB_SOCKET = str(tmp_path / "hub.sock")


@pytest.mark.usefixtures("remembering")
def test_a_database_that_was_put_back_is_noticed_by_what_is_remembered() -> None:
    for number in range(6):
        before = publish("ledger:1", "message", number)
    noticed = [notice_restore()]
    put_back(3)
    noticed += [notice_restore(), notice_restore()]

    after = [publish("ledger:1", "message", number) for number in range(5)][-1]
    noticed += [notice_restore()]

    assert noticed == [False, True, False, False]
    assert after.offset == 8
    assert after.epoch != before.epoch


@pytest.mark.usefixtures("remembering")
def test_a_hub_that_starts_over_older_data_begins_a_new_epoch() -> None:
    for number in range(6):
        before = publish("ledger:1", "message", number)
    Relay().look()
    put_back(3)

    Relay().look()

    assert publish("ledger:1", "message", "other").epoch != before.epoch


@pytest.mark.usefixtures("remembering")
def test_a_new_epoch_is_not_taken_for_older_data() -> None:
    publish("ledger:1", "message", 1)
    notice_restore()
    put_back(0)
    begun = begin_epoch()

    noticed = notice_restore()

    assert not noticed
    assert publish("ledger:1", "message", 1).epoch == begun


def test_a_redis_that_lost_its_memory_changes_nothing_of_the_database(own_redis: OwnRedis) -> None:
    before = publish("ledger:1", "message", 1)
    notice_restore()
    own_redis.client.flushall()

    assert not notice_restore()
    assert publish("ledger:1", "message", 1).epoch == before.epoch


@pytest.mark.parametrize("content", ["", "epoch", "epoch number\n", "of another 100 words"])
def test_a_file_that_says_nothing_changes_nothing(settings: Settings, tmp_path: Path, content: str) -> None:
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")
    (tmp_path / "hub.reached").write_text(content)
    event = publish("ledger:1", "message", 1)

    assert not notice_restore()
    assert (tmp_path / "hub.reached").read_text() == f"{event.epoch} 1\n"


def test_a_file_that_cannot_be_written_is_no_reason_not_to_relay(settings: Settings, tmp_path: Path) -> None:
    settings.HUB_SOCKET = str(tmp_path / "missing" / "hub.sock")
    leave_behind("ledger:1", "left")
    relay = Relay()

    with pytest.raises(LogUnavailable, match=r"hub\.reached cannot be written"):
        notice_restore()
    for _ in range(2):
        relay.look()

    assert kept("ledger:1") == [(1, "left")]


async def test_newepoch_tells_every_client_of_durable_topics(hub_client: Connect, settings: Settings) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.1
    client = await hub_client()
    await client.subscribe("ledger:1")
    cursor = await published("ledger:1", 3)
    for _ in range(3):
        await client.next_publication("ledger:1")

    output = StringIO()
    await asyncio.to_thread(call_command, "newepoch", stdout=output)
    await told_to_recover(client, "ledger:1")
    again = await client.subscribe("ledger:1", since=cursor)

    assert output.getvalue() == f"new epoch of the durable topics: {again['epoch']}\n"
    assert (again.get("recovered", False), again["offset"]) == (False, 3)


def test_newepoch_before_anything_was_published() -> None:
    output = StringIO()

    call_command("newepoch", stdout=output)

    assert output.getvalue() == f"new epoch of the durable topics: {publish('ledger:1', 'message', 1).epoch}\n"


def test_newepoch_of_windows_in_redis(own_redis: OwnRedis) -> None:
    before = {name: publish(name, "message", 1) for name in ("open:1", "open:2")}
    output = StringIO()

    call_command("newepoch", windows=True, stdout=output)
    now = {name: position(name) for name in before}

    assert output.getvalue().startswith("new epochs of 2 topics in Redis\n")
    assert {name: cursor.offset for name, cursor in now.items()} == {"open:1": 1, "open:2": 1}
    assert len({cursor.epoch for cursor in now.values()} | {event.epoch for event in before.values()}) == 4


def test_newepoch_of_windows_without_a_redis(settings: Settings) -> None:
    settings.HUB_REDIS_URL = ""

    with pytest.raises(CommandError, match="HUB_REDIS_URL is empty"):
        call_command("newepoch", windows=True)


async def test_the_switchboard_keeps_an_epoch_whose_log_is_ahead(hub_client: Connect, own_redis: OwnRedis) -> None:
    """A log that has more than a process knows of was not put back."""
    client = await hub_client()
    epoch = (await client.subscribe("open:1"))["epoch"]
    live = (await current_switchboard()).topics["open:1"]
    cursor = await published("open:1", 3)
    for _ in range(3):
        await client.next_publication("open:1")

    live.position = Cursor(1, epoch)
    live.repair()
    repaired = [(await client.next_publication("open:1"))["offset"] for _ in range(2)]

    assert repaired == [2, 3]
    assert cursor.epoch == epoch
