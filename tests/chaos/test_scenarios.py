"""What is promised holds, whatever dies: real processes are killed under load, and two records are compared."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.companions import publishers
from tests.chaos.ledger import Outcome
from tests.chaos.load import Load
from tests.chaos.records import Kind
from tests.servers import eventually, required

pytestmark = pytest.mark.timeout(900)

STOP_SECONDS = 15.0
BACK_SECONDS = 3_600


def test_a_killed_server(load: Load) -> None:
    with load:
        for number in load.chaos.rounds():
            load.site.servers[number % 2].kill()
            load.go_on(0.5, 5)
            load.fault_over()
            load.site.replace_server(number % 2)
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0
    assert load.account.recovered > 0


def test_a_worker_killed_in_mid_task(load: Load) -> None:
    with load:
        for number in load.chaos.rounds():
            load.dispatch(tasks=8, steps=5, pause=0.2)
            pool = load.site.pool_of(number % 2)
            eventually(partial(load.begun_by, pool, step=2))
            load.site.kill_worker(number % 2)
            load.fault_over()
            load.site.replace_worker(number % 2)
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0


def test_workers_restarted_in_mid_task(load: Load) -> None:
    with load:
        for _ in load.chaos.rounds():
            load.dispatch(tasks=8, steps=5, pause=0.2)
            for number, worker in enumerate(load.site.workers):
                pool = load.site.pool_of(number)
                eventually(partial(load.begun_by, pool, step=2))
                assert worker.stop(signal.SIGTERM, seconds=STOP_SECONDS) == 0, worker.output
                load.site.replace_worker(number)
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0


def test_a_publisher_killed_between_commit_and_send(load: Load) -> None:
    quiet = f"ledger:{load.name}-quiet"
    load.quiet = [quiet]
    victims = [
        (publishers(load.folder, load.site.environment, name=f"victim-{number}-{topic[-1]}"), topic, f"victim{number}")
        for number in load.chaos.rounds()
        for topic in (load.durable[0], quiet)
    ]
    with load:
        for victim, topic, series in victims:
            victim.tell("die_after_commit", topic=topic, ledger=str(load.file), series=series, number=1)
            assert victim.process.wait(60) == -signal.SIGKILL, victim.output
        load.fault_over()
        # Before anybody publishes there again, who would send it as well.
        assert load.arrival_of((topic, f"{series}-1") for _, topic, series in victims) == 0
        load.flow()

    committed = [promise for promise in load.promises().values() if promise.series.startswith("victim")]
    assert {promise.outcome for promise in committed} == {Outcome.PROMISED}
    assert load.account.holds, load.account.problems


def test_a_restarted_redis_that_kept_nothing(load: Load) -> None:
    with load.published_by(window_after_commit=False):
        for _ in load.chaos.rounds():
            load.site.restart_redis()
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert all(load.told_clients(topic) == load.everybody for topic in load.window)
    assert not any(load.told_clients(topic) for topic in load.durable)


def test_a_frozen_redis(load: Load) -> None:
    with load.published_by(window_after_commit=False):
        for _ in load.chaos.rounds():
            load.site.freeze_redis()
            load.go_on(3, 10)
            load.site.thaw_redis()
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0


def test_a_flushed_redis(load: Load) -> None:
    with load.published_by(window_after_commit=False):
        for _ in load.chaos.rounds():
            load.site.flush_redis()
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert all(load.told_clients(topic) == load.everybody for topic in load.window)
    assert not any(load.told_clients(topic) for topic in load.durable)


def test_a_restarted_postgresql(load: Load) -> None:
    with load:
        for number in load.chaos.rounds():
            load.site.postgres.restart(("immediate", "fast")[number % 2])
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0


def test_sockets_dropped_at_random(load: Load) -> None:
    with load:
        seconds = load.chaos.seconds(5, 60)
        load.crowd.ask("drop", seconds=seconds, pause=0.02)
        time.sleep(seconds)
        load.fault_over()
        load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0
    assert sum(record.kind is Kind.CLOSED for record in load.records) > load.chaos.clients
    assert load.account.recovered > 0


def test_a_client_that_stops_reading(load: Load) -> None:
    load.small = [0]
    with load.published_by(pad=50_000, kinds=["http", "transactions"]):
        load.flow()
        load.crowd.ask("stall", client=0)
        stalled_at = time.monotonic()
        # More than a session may have unsent, and than the two ends of its socket hold.
        load.flow(load.chaos.count(120, 1_500), seconds=120)
        promised = [place for place, promise in load.promises().items() if promise.outcome is Outcome.PROMISED]
        # While it still reads nothing.
        assert load.arrival_of(promised, besides=[0]) == 0
        read_at = time.monotonic()
        load.crowd.ask("read", client=0)
        load.fault_over()
        load.flow()

    others = [record for record in load.records if record.client != 0]
    during = [record for record in others if stalled_at <= record.at < read_at]
    assert load.account.holds, load.account.problems
    assert any(record.kind is Kind.CLOSED and record.client == 0 for record in load.records)
    assert not any(record.kind is Kind.CLOSED for record in during)


def test_servers_restarted_one_after_the_other(load: Load) -> None:
    with load:
        for _ in load.chaos.rounds():
            for number, server in enumerate(load.site.servers):
                assert server.stop(signal.SIGTERM, seconds=STOP_SECONDS) in (0, -signal.SIGTERM), server.output
                assert "Traceback" not in server.output
                load.site.replace_server(number)
            load.fault_over()
            load.flow()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0
    assert load.account.recovered > 0


def test_a_publisher_whose_clock_was_set_back(load: Load, tmp_path: Path) -> None:
    library = tmp_path / "late_clock.so"
    source = Path(__file__).with_name("late_clock.c")
    compiler = shutil.which("cc") or required("a C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    late = {"LD_PRELOAD": str(library), "HUB_CLOCK_BACK": str(BACK_SECONDS)}
    publisher = publishers(load.folder, {**load.site.environment, **late}, name="late")
    with load:
        assert publisher.ask("time")["time"] == pytest.approx(time.time() - BACK_SECONDS, abs=60)
        publisher.ask("start", **load.order(name="late", kinds=["transactions", "tasks"]))
        load.flow()
        seconds = load.chaos.seconds(1, 30)
        load.crowd.ask("drop", seconds=seconds, pause=0.05)
        time.sleep(seconds)
        load.fault_over()
        load.flow()
        assert publisher.ask("stop")["failures"] == []
    publisher.close()

    assert load.account.holds, load.account.problems
    assert load.account.told == 0
    assert load.account.recovered > 0
    assert {record.key.partition("-")[0] for record in load.records} >= {"late.transactions", "late.tasks"}
