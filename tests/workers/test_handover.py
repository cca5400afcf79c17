"""Tasks that another process sends reach the worker of the hub's process, or fail loudly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from kombu.utils import json
from pytest_django import Settings

from notifications.events import counters, local
from notifications.server.owner import OwnerServer
from workers import app, handover
from workers.tasks import fail_lost_tasks


@pytest.fixture
async def taken(settings: Settings, tmp_path: Path) -> AsyncIterator[list[Any]]:
    """What reaches the hub's process, which is this one, as if others had sent it."""
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")
    bodies: list[Any] = []
    owner = OwnerServer()
    owner.operations["task"] = lambda body: bodies.append(json.loads(body))
    await owner.start()
    local.resign()
    yield bodies
    await owner.stop()


async def test_a_task_is_handed_over_with_its_options(taken: list[Any]) -> None:
    eta = datetime(2026, 1, 1, tzinfo=UTC)

    result = await asyncio.to_thread(fail_lost_tasks.apply_async, eta=eta, expires=60, priority=3)

    (body,) = taken
    assert (body["name"], body["args"]) == ("hub.fail_lost_tasks", None)
    assert {name: body["options"][name] for name in ("task_id", "eta", "expires", "priority")} == {
        "task_id": result.id,
        "eta": eta,
        "expires": 60,
        "priority": 3,
    }


async def test_every_way_of_sending_is_handed_over(taken: list[Any]) -> None:
    def send() -> None:
        fail_lost_tasks.delay()
        app.send_task("hub.prune_events", kwargs={"a": datetime(2026, 1, 1, tzinfo=UTC)})
        (fail_lost_tasks.si() | fail_lost_tasks.si()).delay()

    await asyncio.to_thread(send)

    assert [body["name"] for body in taken] == ["hub.fail_lost_tasks", "hub.prune_events", "hub.fail_lost_tasks"]
    assert taken[1]["kwargs"] == {"a": datetime(2026, 1, 1, tzinfo=UTC)}
    assert [step["task"] for step in taken[2]["options"]["chain"]] == ["hub.fail_lost_tasks"]


def test_without_a_hub_sending_fails_and_says_what_to_start(settings: Settings) -> None:
    settings.HUB_SOCKET = "/nowhere/hub.sock"

    with pytest.raises(OperationalError, match=r"manage\.py runhub"):
        fail_lost_tasks.delay()


def test_in_a_hub_without_a_worker_sending_fails(settings: Settings, tmp_path: Path) -> None:
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")
    local.become_owner()
    try:
        with pytest.raises(OperationalError, match="no worker runs tasks of this hub"):
            fail_lost_tasks.delay()
    finally:
        local.resign()


async def test_what_was_handed_over_is_queued(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    body = json.dumps(
        {"name": "tests.taken", "args": [1], "kwargs": None, "options": {"task_id": "id-1", "queue": "of-this-test"}}
    )

    assert await handover.take(body) == "id-1"

    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("of-this-test").get(timeout=5)
    assert (message.headers["task"], message.headers["id"], message.payload[0]) == ("tests.taken", "id-1", [1])


def test_tasks_that_end_are_counted_and_sampling_is_not(settings: Settings) -> None:
    settings.HUB_SOCKET = ""

    @app.task(name="tests.counted")
    def counted() -> None:
        """Nothing."""

    @app.task(name="tests.retried", bind=True, max_retries=1, default_retry_delay=0)
    def retried(self: Any) -> None:
        if self.request.retries == 0:
            self.retry()

    before = counters.totals().get("tasks_done", 0)
    counted.apply()
    retried.apply()

    assert counters.totals()["tasks_done"] == before + 2
