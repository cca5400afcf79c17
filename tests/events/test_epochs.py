"""Logs that are read for many topics at once, and that begin a new epoch where they were put back to older data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis
from pytest_django import Settings

from notifications.events import Cursor, Topic, apublish, durable, window
from notifications.events.logs import Read, log_for
from notifications.events.topics import registry, resolve

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=["memory", "redis", "database"])
def log(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """Topics `read:<name>` in the log of the parameter."""
    settings.HUB_SOCKET = ""
    if request.param == "redis":
        settings.HUB_REDIS_URL = request.getfixturevalue("redis_url")
        redis.Redis.from_url(settings.HUB_REDIS_URL).flushall()

    class ReadTopic(Topic):
        pattern = "read:<name>"
        retention = durable() if request.param == "database" else window(size=50, seconds=60)

    registry.register(ReadTopic)
    yield request.param
    registry.unregister(ReadTopic)


async def published(name: str, number: int) -> Cursor:
    """Publish so many events; returns the position."""
    for index in range(number):
        event = await apublish(name, "message", index)
    return event.cursor


async def test_many_topics_are_read_as_each_is_for_itself(log: str) -> None:
    for name, number in (("read:a", 7), ("read:b", 3), ("read:c", 1)):
        await published(name, number)
    asked = [
        ("read:a", 0, 100),
        ("read:a", 4, 100),
        ("read:a", 2, 3),
        ("read:b", 3, 100),
        ("read:b", 9, 100),
        ("read:c", 0, 1),
        ("read:never", 0, 100),
    ]
    reads = [Read(resolve(name), Cursor(since), limit) for name, since, limit in asked]
    found = log_for(reads[0].topic.retention)

    pages = await found.aread_many(reads)

    assert [[event.offset for event in page.events] for page in pages] == [
        [1, 2, 3, 4, 5, 6, 7],
        [5, 6, 7],
        [3, 4, 5],
        [],
        [],
        [1],
        [],
    ]
    assert [page.position.offset for page in pages] == [7, 7, 7, 3, 3, 1, 0]
    assert pages == [await found.aread(read.topic, since=read.since, limit=read.limit) for read in reads]


async def test_more_topics_than_one_query_holds_are_read(log: str) -> None:
    names = [f"read:{number}" for number in range(120)]
    for name in names:
        await published(name, 1)
    reads = [Read(resolve(name), Cursor(0), 10) for name in names]

    pages = await log_for(reads[0].topic.retention).aread_many(reads)

    assert [[event.topic for event in page.events] for page in pages] == [[name] for name in names]


# Memory is gone with its process, and never put back.
kept = pytest.mark.parametrize("log", ["redis", "database"], indirect=True)


@kept
async def test_an_epoch_ends_when_its_topic_is_behind_what_it_was(log: str) -> None:
    cursor = await published("read:a", 3)
    topic = resolve("read:a")

    begun = await log_for(topic.retention).abegin_epoch(topic, lost=Cursor(5, cursor.epoch))
    after = await published("read:a", 1)

    assert begun.offset == 3
    assert begun.epoch not in ("", cursor.epoch)
    assert after == Cursor(4, begun.epoch)


@kept
@pytest.mark.parametrize(("offset", "epoch"), [(3, None), (2, None), (9, "of before")])
async def test_an_epoch_goes_on_otherwise(log: str, offset: int, epoch: str | None) -> None:
    cursor = await published("read:a", 3)
    topic = resolve("read:a")

    found = await log_for(topic.retention).abegin_epoch(topic, lost=Cursor(offset, epoch or cursor.epoch))

    assert found == cursor


@kept
async def test_processes_that_notice_together_begin_one_epoch(log: str) -> None:
    cursor = await published("read:a", 3)
    topic = resolve("read:a")
    shared = log_for(topic.retention)

    found = await asyncio.gather(*(shared.abegin_epoch(topic, lost=Cursor(5, cursor.epoch)) for _ in range(4)))

    assert len(set(found)) == 1
    assert found[0].epoch != cursor.epoch
