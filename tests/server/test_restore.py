"""A hub that is started over an older copy of its database, as a restore of a back-up puts it there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.servers import Hub, eventually

TOPICS = '{"ledger": {"durable": true, "allow_subscribe_for_anonymous": true}}'
PUBLISH = """
from notifications.events import publish
for number in range({number}):
    event = publish("ledger:1", "message", number)
print(f"{{event.epoch}}:{{event.offset}}")
"""

Start = Callable[[], Hub]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a hub in the folder that those before it had."""
    running: list[Hub] = []

    def begin() -> Hub:
        running.append(Hub(tmp_path, HUB_TOPICS=TOPICS))
        return running[-1]

    yield begin
    for hub in running:
        hub.stop()


def publish(hub: Hub, number: int) -> str:
    """Publish so many events; returns the position of the last one."""
    return hub.command("shell", "-c", PUBLISH.format(number=number)).split()[-1]


def is_complete(hub: Hub, since: str) -> bool:
    """Whether a client that comes back with a position is told that it gets all it missed."""
    with httpx.stream("GET", f"{hub.url}/events", params={"topic": "ledger:1", "since": since}, timeout=10) as stream:
        lines = stream.iter_lines()
        while next(lines) != "event: hub.resume":
            pass
        return next(lines) == 'data: {"complete":true}'


def remembered(database: Path) -> int:
    """How many durable events the hub remembers beside its database."""
    return int(database.with_name("hub.reached").read_text().split()[1])


def numbered(database: Path) -> int:
    """How many the database has had, those of the hub's own topics included."""
    with closing(sqlite3.connect(database)) as connection:
        number: int = connection.execute('SELECT sum("offset") FROM hub_events_topichead').fetchone()[0]
    return number


@pytest.mark.timeout(120)
def test_clients_are_told_of_a_back_up_that_was_put_back_while_the_hub_was_stopped(
    start: Start, tmp_path: Path
) -> None:
    database, back_up = tmp_path / "data" / "hub.sqlite3", tmp_path / "back-up.sqlite3"
    first = start()
    publish(first, 3)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(back_up)) as target:
        source.backup(target)
    cursor = publish(first, 3)
    first.stop()
    second = start()
    unharmed = is_complete(second, cursor)
    eventually(lambda: remembered(database) == numbered(database))
    second.stop()

    shutil.copy(back_up, database)
    third = start()
    third.wait_for("durable events are gone: the database was put back to older data")
    other = publish(third, 5)
    told = is_complete(third, cursor)

    assert unharmed
    assert (cursor.partition(":")[2], other.partition(":")[2]) == ("6", "8")
    assert not told
    assert is_complete(third, other)
