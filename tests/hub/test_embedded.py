"""The worker and the beat inside the hub's process, with tasks of a site's own."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from notifications.events import Event
from tests.conftest import API_KEY
from tests.servers import Hub, eventually

SETTINGS = "from hub.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'site_app']\n"
TASKS = """
import os, time
from celery import shared_task
from notifications.progress import LiveTask

@shared_task(base=LiveTask, bind=True)
def long(self, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        self.progress(1, total=2, note="under way")
        time.sleep(0.05)

@shared_task(base=LiveTask, bind=True)
def deaf(self, seconds):
    self.progress(1, total=2)
    time.sleep(seconds)

@shared_task(base=LiveTask, bind=True)
def held(self):
    self.progress(1, total=2)
    while not os.path.exists("let_go"):
        time.sleep(0.02)
"""


def site(folder: Path, *, lost_seconds: int = 600, drain_seconds: float = 5) -> Hub:
    """A hub with an app that has tasks of its own."""
    (folder / "site_app").mkdir(exist_ok=True)
    (folder / "site_app" / "__init__.py").write_text("")
    (folder / "site_app" / "tasks.py").write_text(TASKS)
    (folder / "site_settings.py").write_text(SETTINGS)
    return Hub(
        folder,
        HUB_API_KEYS=API_KEY,
        DJANGO_SETTINGS_MODULE="site_settings",
        HUB_TASK_LOST_SECONDS=str(lost_seconds),
        HUB_DRAIN_SECONDS=str(drain_seconds),
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = site(tmp_path_factory.mktemp("site"))
    yield hub
    hub.stop()


def history(hub: Hub, topic: str) -> list[dict[str, Any]]:
    """The kept events of a topic."""
    answer = httpx.post(f"{hub.url}/api/history", json={"channel": topic, "limit": 300}, headers={"X-API-Key": API_KEY})
    publications: list[dict[str, Any]] = answer.json()["result"]["publications"]
    return publications


def types(hub: Hub, topic: str) -> list[str]:
    return [found["tags"]["type"] for found in history(hub, topic)]


def delay(hub: Hub, task: str, *arguments: Any) -> str:
    """Start a task from another process; returns its id."""
    call = ", ".join(repr(argument) for argument in arguments)
    return hub.command(
        "shell", "-v", "0", "-c", f"from site_app.tasks import {task}; print({task}.delay({call}).id)"
    ).strip()


def states(hub: Hub) -> list[tuple[str, str]]:
    """The states of all runs of tasks, and what they failed of, as their rows have them."""
    with closing(sqlite3.connect(hub.folder / "data" / "hub.sqlite3")) as database:
        return sorted(database.execute("SELECT state, error FROM hub_progress_taskrun").fetchall())


def signed_in(hub: Hub) -> httpx.Client:
    client = httpx.Client(base_url=hub.url, cookies={"sessionid": hub.sign_in()})
    client.get("/accounts/login/", follow_redirects=True)
    return client


def post(client: httpx.Client, path: str, **fields: str) -> httpx.Response:
    headers = {"X-CSRFToken": client.cookies["csrftoken"], "Referer": str(client.base_url)}
    return client.post(path, data=fields, headers=headers)


def test_a_task_that_another_process_sends_runs_in_the_hub(running: Hub) -> None:
    task_id = delay(running, "long", 0.5)

    eventually(lambda: "task.succeeded" in types(running, f"tasks:{task_id}"))

    told = types(running, f"tasks:{task_id}")
    assert told[0] == "task.started"
    assert set(told[1:-1]) == {"task.progress"}
    assert told[-1] == "task.succeeded"


def test_sampling_goes_on_while_a_long_task_runs(running: Hub) -> None:
    task_id = delay(running, "deaf", 6)
    eventually(lambda: "task.progress" in types(running, f"tasks:{task_id}"))
    begun = len(history(running, "dashboard:system"))

    eventually(lambda: len(history(running, "dashboard:system")) >= begun + 3)

    assert "task.succeeded" not in types(running, f"tasks:{task_id}")
    sample = history(running, "dashboard:system")[-1]
    assert (sample["tags"]["type"], sample["tags"]["key"]) == ("system.sample", "system")
    assert set(sample["data"]) == {"cpu", "memory", "load", "connections", "published", "delivered", "tasks"}


def test_an_export_is_started_followed_and_downloaded(running: Hub) -> None:
    client = signed_in(running)
    for number in range(3):
        running.command("publish", "chat:exported", "chat.message", f'{{"message": "number {number}"}}')

    answer = post(client, "/tasks/export/", topic="chat:exported")
    assert answer.status_code == 202, answer.text
    task_id = answer.json()["id"]
    eventually(lambda: "task.succeeded" in types(running, f"tasks:{task_id}"))

    task = history(running, f"tasks:{task_id}")[-1]["data"]
    file = client.get(task["result_url"])
    assert (task["done"], task["total"]) == (3, 3)
    assert "attachment" in file.headers["Content-Disposition"]
    assert [msgspec.json.decode(line, type=Event).data for line in file.content.splitlines()] == [
        {"message": f"number {number}"} for number in range(3)
    ]
    assert httpx.get(f"{running.url}{task['result_url']}").status_code == 302
    assert task_id in client.get("/tasks/").text


def test_pruning_is_started_from_the_page(running: Hub) -> None:
    answer = post(signed_in(running), "/tasks/prune/")

    assert answer.status_code == 202, answer.text
    eventually(lambda: "task.succeeded" in types(running, f"tasks:{answer.json()['id']}"))


def test_a_stop_does_not_wait_for_long_tasks_and_shows_them_as_failed(tmp_path: Path) -> None:
    hub = site(tmp_path, drain_seconds=1)
    ids = [delay(hub, "long", 120), delay(hub, "deaf", 120)]
    for task_id in ids:
        eventually(lambda: "task.progress" in types(hub, f"tasks:{task_id}"))  # noqa: B023 - called at once
    begun = time.monotonic()

    assert hub.stop(signal.SIGINT) == 0

    assert time.monotonic() - begun < 6
    assert "Traceback" not in hub.output
    assert states(hub) == [("failed", "the hub was stopped while it ran")] * 2


def test_a_stop_lets_tasks_in_hand_end_and_the_next_start_runs_what_had_not_begun(tmp_path: Path) -> None:
    hub = site(tmp_path)
    client = signed_in(hub)
    start = "from site_app.tasks import held; [held.delay() for thread in range(4)]"
    hub.command("shell", "-v", "0", "-c", start)
    eventually(lambda: types(hub, "tasks:all").count("task.progress") == 4, seconds=30)
    assert post(client, "/tasks/export/", topic="chat:exported").status_code == 202

    hub.process.send_signal(signal.SIGTERM)
    hub.wait_for("the worker begins no further task")
    assert hub.process.poll() is None
    (tmp_path / "let_go").touch()

    assert hub.process.wait(10) == 0
    assert "Traceback" not in hub.output
    assert states(hub) == [("queued", "")] + [("succeeded", "")] * 4
    again = site(tmp_path)
    eventually(lambda: states(again) == [("succeeded", "")] * 5)
    assert again.stop() == 0


def test_a_task_of_a_killed_hub_is_shown_as_failed_by_the_next(tmp_path: Path) -> None:
    hub = site(tmp_path)
    task_id = delay(hub, "deaf", 120)
    eventually(lambda: "task.progress" in types(hub, f"tasks:{task_id}"))
    hub.kill()

    again = site(tmp_path, lost_seconds=1)
    again.command("shell", "-v", "0", "-c", "from workers.tasks import fail_lost_tasks; fail_lost_tasks.delay()")
    eventually(lambda: "task.failed" in types(again, "tasks:all"))

    (failed,) = [found["data"] for found in history(again, "tasks:all") if found["tags"]["type"] == "task.failed"]
    assert failed["id"] == task_id
    assert (failed["done"], failed["total"]) == (1, 2)
    assert "nothing was heard of it" in failed["error"]
    assert again.stop() == 0
