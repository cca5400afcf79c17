"""A process of a prefork pool that is killed, as for want of memory: its task is neither lost nor run for ever."""

from __future__ import annotations

import os
import signal

import redis

from tests.servers import HubProcess, eventually
from tests.workers.site import Site, unacked

LOST = "WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL)"


def queued(site: Site) -> int:
    with redis.Redis.from_url(site.redis_url) as client:
        return int(client.llen("celery"))  # type: ignore[arg-type]


def test_a_task_whose_child_was_killed_is_run_again(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first")
    task = site.send("hold", "long")
    eventually(lambda: site.ran() and site.run_of(task) == ("progress", 1))

    os.kill(site.pids()[0], signal.SIGKILL)
    eventually(lambda: site.run_of(task) == ("retried", 1))
    why = site.error_of(task)
    eventually(lambda: site.ran() == ["long began", "long began"])
    site.let_end("long")
    eventually(lambda: site.run_of(task) == ("succeeded", 1))
    eventually(lambda: not unacked(site))

    assert why.startswith(LOST)
    assert site.ran() == ["long began", "long began", "long ended"]
    assert len({*site.pids()}) == 2
    assert workers[0].process.poll() is None


def test_a_task_that_always_kills_its_child_is_given_up(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first")
    task = site.send("kill_child", "deadly")
    site.let_end("other")
    eventually(site.ran)

    eventually(lambda: site.run_of(task)[0] == "failed", seconds=20)
    site.send("hold", "other")
    eventually(lambda: site.ran()[-1:] == ["other ended"])
    eventually(lambda: not unacked(site))

    # As many attempts as its `max_retries` allows, and then it is told and gone.
    assert site.ran() == ["deadly began"] * 3 + ["other began", "other ended"]
    assert site.error_of(task).startswith(LOST)
    assert queued(site) == 0
    assert site.alerts() == [("firing", "site_app.tasks.kill_child")]


def test_a_task_that_is_acknowledged_before_it_begins_is_not_run_again(site: Site, workers: list[HubProcess]) -> None:
    workers += site.workers("first")
    task = site.send("hold_once", "once")
    eventually(lambda: site.ran() and site.run_of(task) == ("progress", 1))
    site.let_end("other")

    os.kill(site.pids()[0], signal.SIGKILL)
    eventually(lambda: site.run_of(task) == ("failed", 1))
    site.send("hold", "other")
    eventually(lambda: site.ran()[-1:] == ["other ended"])

    assert site.ran() == ["once began", "other began", "other ended"]
    assert site.error_of(task).startswith(LOST)
