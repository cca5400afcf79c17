"""The thread pool of the embedded worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from workers import pool
from workers.pool import DaemonThreadPool


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonThreadPool]:
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.2)
    running = DaemonThreadPool(limit=2)
    running.start()
    yield running
    running.stop()


def test_tasks_run_beside_each_other(threads: DaemonThreadPool) -> None:
    both = threading.Barrier(2, timeout=5)

    results = [threads.apply_async(both.wait, callback=lambda value: None) for _ in range(2)]
    for result in results:
        result.wait(5)

    assert not both.broken


def test_a_task_that_breaks_leaves_its_thread_to_others(threads: DaemonThreadPool) -> None:
    def broken() -> None:
        raise RuntimeError("of Celery itself")

    done: list[int] = []
    for _ in range(4):
        threads.apply_async(broken)
    threads.apply_async(lambda: 1, callback=done.append).wait(5)

    assert done == [1]


def test_stopping_waits_a_moment_for_what_runs_and_starts_nothing_more(threads: DaemonThreadPool) -> None:
    release, started, ran = threading.Event(), threading.Semaphore(0), []

    def wait_long() -> None:
        started.release()
        release.wait()

    for _ in range(2):
        threads.apply_async(wait_long, callback=lambda value: None)
        started.acquire(timeout=5)
    threads.apply_async(lambda: ran.append("too late"), callback=lambda value: None)
    begun = time.monotonic()

    threads.stop()

    assert 0.15 < time.monotonic() - begun < 2
    release.set()
    for thread in threads._threads:
        thread.join(5)
        assert thread.daemon
    assert ran == []
