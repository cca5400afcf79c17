"""A task in hand stays with its worker for as long as that lives, and comes back soon when it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import kombu.transport.redis
import pytest
import redis
from celery import Celery
from kombu.transport import virtual

from tests.servers import HubProcess, RedisServer, eventually
from tests.workers.site import Site, kill, unacked
from workers.unacked import differences

VISIBILITY_SECONDS = 2.0


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


# Another kombu.


@pytest.fixture
def app(broker: RedisServer) -> Iterator[Celery]:
    with Celery(broker=broker.url, set_as_current=False) as application:
        yield application


def keys(broker: RedisServer) -> list[bytes]:
    with redis.Redis.from_url(broker.url) as client:
        return list(client.keys("*"))  # type: ignore[arg-type]


def test_kombu_is_as_expected(app: Celery, broker: RedisServer) -> None:
    assert differences(app) == []
    assert keys(broker) == []


def scores_are_deadlines(qos: Any, message: Any, tag: str) -> None:
    virtual.QoS.append(qos, message, tag)
    qos.channel.client.zadd(qos.unacked_index_key, {tag: time.time() + 3600})


def one_key_for_each(qos: Any, message: Any, tag: str) -> None:
    virtual.QoS.append(qos, message, tag)
    qos.channel.client.set(f"{qos.unacked_index_key}:{tag}", time.time(), ex=1)


def delivered_elsewhere(qos: Any, message: Any, tag: str) -> None:
    qos.channel.client.zadd(qos.unacked_index_key, {tag: time.time()})


def other_type(qos: Any, message: Any, tag: str) -> None:
    virtual.QoS.append(qos, message, tag)
    qos.channel.client.hset(qos.unacked_index_key, tag, time.time())


TIME = "unacked_index does not have the time at which a message was delivered"


@pytest.mark.parametrize(
    ("append", "difference"),
    [
        (scores_are_deadlines, TIME),
        (one_key_for_each, TIME),
        (delivered_elsewhere, "a message is not among those delivered"),
        (other_type, "ResponseError: WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
)
def test_a_kombu_that_keeps_messages_otherwise_is_noticed(
    app: Celery, monkeypatch: pytest.MonkeyPatch, append: Any, difference: str
) -> None:
    monkeypatch.setattr(kombu.transport.redis.QoS, "append", append)

    assert differences(app) == [difference]


def test_a_kombu_that_calls_it_otherwise_is_noticed(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kombu.transport.redis.Channel, "unacked_index_key")

    (difference,) = differences(app)

    assert difference.startswith("AttributeError: ")
    assert "unacked_index_key" in difference


def test_a_broker_that_takes_nothing_at_the_moment_is_not_taken_for_another_kombu(
    app: Celery, broker: RedisServer
) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("maxmemory", 1)

    with pytest.raises(redis.ResponseError, match="command not allowed"):
        differences(app)


def test_a_worker_over_another_kombu_says_so_and_works(
    tmp_path: Path, broker: RedisServer, workers: list[HubProcess]
) -> None:
    ready = (
        "from kombu.transport.redis import QoS; append = QoS.append; "
        "QoS.append = lambda qos, message, tag: ("
        "append(qos, message, tag), qos.channel.client.zincrby(qos.unacked_index_key, 3600, tag))"
    )
    site = Site(tmp_path, broker.url, ready=ready)
    workers += site.workers("first")

    task = site.send("hold", "short")
    site.let_end("short")
    eventually(lambda: site.ran() == ["short began", "short ended"])
    eventually(lambda: not unacked(site))

    assert f"tasks in hand have no lease, because kombu {metadata.version('kombu')} is not as" in workers[0].output
    assert "than 2 s is begun a second time" in workers[0].output
    assert workers[0].output.count("tasks in hand have no lease") == 1
    assert "were not renewed" not in workers[0].output
    eventually(lambda: site.run_of(task) == ("succeeded", 1))
