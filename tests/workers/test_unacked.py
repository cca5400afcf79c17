"""A task in hand stays with its worker for as long as that lives, and comes back soon when it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers import HubProcess, RedisServer, eventually, redis_server_binary, required
from tests.workers.site import Site, kill

VISIBILITY_SECONDS = 2.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    yield server
    server.stop()


@pytest.fixture
def site(tmp_path: Path, broker: RedisServer) -> Site:
    return Site(tmp_path, broker.url)


@pytest.fixture
def workers(site: Site) -> Iterator[list[HubProcess]]:
    """Workers that are stopped at the end, whatever their tasks do."""
    started: list[HubProcess] = []
    yield started
    for worker in started:
        if worker.process.poll() is None:
            kill(worker)


def unacked(site: Site) -> dict[bytes, float]:
    """The leases of tasks in hand, and when each was renewed."""
    with redis.Redis.from_url(site.redis_url) as client:
        return dict(client.zrange("unacked_index", 0, -1, withscores=True))


def restart(broker: RedisServer) -> None:
    """Kill a broker, and start it with what it held."""
    with redis.Redis.from_url(broker.url) as client:
        client.save()
    broker.process.kill()
    broker.process.wait()
    broker.start()


def test_a_task_of_a_killed_worker_is_run_by_another(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first")
    task = site.send("hold", "long")
    eventually(lambda: site.ran() == ["long began"])
    workers += site.workers("second")

    kill(workers[0])
    killed = time.monotonic()
    eventually(lambda: site.ran() == ["long began", "long began"])
    given_back = time.monotonic() - killed
    site.let_end("long")
    eventually(lambda: site.ran() == ["long began", "long began", "long ended"])
    eventually(lambda: not unacked(site))

    assert given_back < 3 * VISIBILITY_SECONDS
    assert site.run_of(task) == ("succeeded", 1)


def test_a_task_that_takes_longer_than_the_timeout_runs_once(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first", "second")
    site.send("hold", "long")
    eventually(lambda: site.ran() == ["long began"])

    began = time.time()
    eventually(lambda: min(unacked(site).values(), default=0) > began + 2 * VISIBILITY_SECONDS)
    site.let_end("long")
    eventually(lambda: not unacked(site))

    assert site.ran() == ["long began", "long ended"]


def test_a_worker_that_is_stopped_keeps_the_lease_until_its_task_has_ended(
    site: Site, workers: list[HubProcess]
) -> None:
    workers += site.workers("first")
    site.send("hold", "long")
    eventually(lambda: site.ran() == ["long began"])
    workers += site.workers("second")

    workers[0].process.terminate()
    began = time.time()
    eventually(lambda: min(unacked(site).values(), default=0) > began + 2 * VISIBILITY_SECONDS)
    site.let_end("long")
    workers[0].process.wait(10)

    assert site.ran() == ["long began", "long ended"]
    assert unacked(site) == {}


def test_a_busy_worker_leaves_waiting_tasks_to_others(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first")
    site.send("hold", "long")
    eventually(lambda: site.ran() == ["long began"])
    site.send("hold", "next")
    site.let_end("next")

    workers += site.workers("second")
    eventually(lambda: site.ran() == ["long began", "next began", "next ended"], seconds=VISIBILITY_SECONDS)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_outlives_the_connection_to_the_broker(
    site: Site, broker: RedisServer, workers: list[HubProcess], pool: str
) -> None:
    workers += site.workers("first", "second", options=("--pool", pool))
    task = site.send("hold", "long")
    eventually(lambda: site.ran() == ["long began"])

    restart(broker)
    for worker in workers:
        worker.wait_for("Trying to re-establish the connection")
    began = time.time()
    eventually(lambda: min(unacked(site).values(), default=0) > began + 2 * VISIBILITY_SECONDS)
    site.let_end("long")
    eventually(lambda: not unacked(site))

    assert site.ran() == ["long began", "long ended"]
    assert site.run_of(task) == ("succeeded", 1)
