"""The Celery application of the hub."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals
from celery.result import AsyncResult

from notifications.events import counters
from workers import handover, unacked
from workers.schedule import SAMPLE_SYSTEM, SCHEDULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")


class HubCelery(Celery):
    """Celery that loses no task to a broker in the wrong process's memory.

    Every way of sending a task, from `delay()` to a chain's next step, ends in `send_task()`.
    """

    def send_task(  # type: ignore[override]  # what it does not look at is in the options
        self, name: str, args: Any = None, kwargs: Any = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send a task by its name, to the hub's process where the broker is in its memory.

        Raises kombu.exceptions.OperationalError when no worker can ever get it.
        """
        if handover.is_needed(self):
            return handover.send(self, name, args, kwargs, options)
        return super().send_task(name, args, kwargs, **options)


app = HubCelery("workers")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = SCHEDULE
app.conf.beat_scheduler = "workers.beat:LeasedScheduler"
app.steps["consumer"].add(unacked.LeasedTasks)
# Threads find the default app, not the one that was current where it was made.
app.set_default()
app.autodiscover_tasks()
app.autodiscover_tasks(["workers"])


@signals.task_postrun.connect(dispatch_uid="hub-tasks-done")
def _count(sender: Any = None, state: str | None = None, **_: Any) -> None:
    """Count tasks that came to an end. Sampling does not count itself: an idle hub would never look idle."""
    if state != "RETRY" and getattr(sender, "name", "") != SAMPLE_SYSTEM:
        counters.add_shared("tasks_done")


@signals.celeryd_after_setup.connect(dispatch_uid="hub-begun-once")
def _begin_once(instance: Any = None, **_: Any) -> None:
    """A task that is acknowledged before it begins may not run twice: not when its process was killed either."""
    for task in instance.app.tasks.values():
        if not task.acks_late:
            task.retry_on_worker_lost = False


@signals.celeryd_init.connect(dispatch_uid="hub-worker-reachable")
def _refuse_unreachable(conf: Any = None, **_: Any) -> None:
    """A worker command whose broker is in its own memory would wait for tasks that nobody can send to it."""
    if handover.is_in_memory(app):
        raise SystemExit(
            "CELERY_BROKER_URL is memory://, which reaches this process alone: this worker would never get a task.\n"
            "`manage.py runhub` has a worker inside; a separate one needs REDIS_URL or CELERY_BROKER_URL."
        )
