"""A site whose tasks write down when they began and ended, with workers and beats of their own over a real Redis."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import psutil
import redis
from celery import Celery

from tests.servers import HubProcess

SETTINGS = """
from hub.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "site_app.apps.SiteConfig"]
CELERY_BROKER_TRANSPORT_OPTIONS = {
    **CELERY_BROKER_TRANSPORT_OPTIONS, "visibility_timeout": 2, "unacked_restore_interval": 0.2
}
"""
APPS = """
from django.apps import AppConfig

class SiteConfig(AppConfig):
    name = "site_app"

    def ready(self):
        from workers import beat
        beat.LEASE_SECONDS, beat.RENEW_SECONDS = {lease_seconds}, 0.2
        {ready}
"""
TASKS = """
import os, signal, time
from pathlib import Path
from celery import shared_task
from notifications.progress import LiveTask

def note(what):
    with Path("runs").open("a") as file:
        file.write(f"{what} {os.getpid()}\\n")

def hold_on(self, name):
    note(f"{name} began")
    self.progress(1, total=2)
    while not Path(f"let {name} end").exists():
        time.sleep(0.02)
    note(f"{name} ended")

hold = shared_task(base=LiveTask, bind=True, name="site_app.tasks.hold", default_retry_delay=1)(hold_on)
hold_once = shared_task(base=LiveTask, bind=True, name="site_app.tasks.hold_once", acks_late=False)(hold_on)

@shared_task(base=LiveTask, bind=True, max_retries=2, default_retry_delay=0.2)
def kill_child(self, name):
    note(f"{name} began")
    self.progress(1, total=2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Site:
    """A folder with the site in it, and what was written down there; `ready` is a line of Python that runs first."""

    def __init__(self, folder: Path, redis_url: str, *, lease_seconds: float = 15, ready: str = "") -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.environment = {
            "HUB_DATA": str(folder / "data"),
            "REDIS_URL": redis_url,
            "SECRET_KEY": "the secret key of one test run",
            "DJANGO_SETTINGS_MODULE": "site_settings",
        }
        for made in ("data", "site_app"):
            (folder / made).mkdir()
        (folder / "site_app" / "__init__.py").write_text("")
        (folder / "site_app" / "apps.py").write_text(APPS.format(lease_seconds=lease_seconds, ready=ready))
        (folder / "site_app" / "tasks.py").write_text(TASKS)
        (folder / "site_settings.py").write_text(SETTINGS)
        migrate = self.start("migrate", "hub", "migrate", "-v", "0")
        assert migrate.process.wait(60) == 0, migrate.output

    def start(self, name: str, *arguments: str) -> HubProcess:
        """A process of the site."""
        return HubProcess(["-m", *arguments], self.folder, self.environment, name=name)

    def workers(self, *names: str, options: tuple[str, ...] = ()) -> list[HubProcess]:
        """Workers that run one task at a time each, once they are ready."""
        arguments = ("celery", "-A", "workers", "worker", "-c", "1", "-l", "info", "--without-mingle", *options, "-n")
        started = [self.start(name, *arguments, name) for name in names]
        for worker in started:
            worker.wait_for(" ready.")
        return started

    def send(self, task: str, *arguments: object) -> str:
        """Send a task; returns its id."""
        sender = Celery(broker=self.redis_url, set_as_current=False)
        try:
            return str(sender.send_task(f"site_app.tasks.{task}", arguments).id)
        finally:
            sender.close()

    def ran(self) -> list[str]:
        """What tasks wrote down, in order, without who they were."""
        return [line.rpartition(" ")[0] for line in self.lines()]

    def pids(self) -> list[int]:
        """The processes that wrote it down, in order."""
        return [int(line.rpartition(" ")[2]) for line in self.lines()]

    def lines(self) -> list[str]:
        """What tasks wrote down, as it is."""
        runs = self.folder / "runs"
        return runs.read_text().splitlines() if runs.exists() else []

    def let_end(self, name: str) -> None:
        """Let a task end that holds."""
        (self.folder / f"let {name} end").touch()

    def run_of(self, task: str) -> tuple[str, int]:
        """The state of a task's run and how much of it is done, as the page of tasks shows them."""
        state, done, _ = self._row_of(task)
        return (state, done)

    def error_of(self, task: str) -> str:
        """What is said of why a task's run did not go on."""
        return self._row_of(task)[2]

    def _row_of(self, task: str) -> tuple[str, int, str]:
        query = "SELECT state, done, error FROM hub_progress_taskrun WHERE id = ?"
        return cast("tuple[str, int, str]", self._rows(query, task)[0])

    def alerts(self) -> list[tuple[str, str]]:
        """The status of each alert, and the task that it is about."""
        return self._rows("SELECT status, fingerprint FROM hub_alerts_alert WHERE source = ?", "celery")

    def _rows(self, query: str, parameter: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "data" / "hub.sqlite3")) as database:
            return database.execute(query, [parameter]).fetchall()


def unacked(site: Site) -> dict[bytes, float]:
    """The leases of tasks in hand, and when each was renewed."""
    with redis.Redis.from_url(site.redis_url) as client:
        return dict(client.zrange("unacked_index", 0, -1, withscores=True))


def kill(worker: HubProcess) -> None:
    """End a worker and its children without giving them a chance."""
    for process in psutil.Process(worker.process.pid).children(recursive=True):
        process.kill()
    worker.kill()
