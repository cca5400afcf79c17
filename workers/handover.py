"""Hands tasks to the process that runs the embedded worker.

The broker of the embedded mode is the memory of one process. What a shell, a command or a separate beat sends
would stay in its own memory, and be gone with it; it goes through the hub's Unix socket instead.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from celery.result import AsyncResult
from celery.utils import uuid
from kombu.exceptions import OperationalError
from kombu.utils import json

from notifications.events import conf, local
from notifications.events.exceptions import LogUnavailable

if TYPE_CHECKING:
    from celery import Celery

# Of the sending process: its connections, and what makes the result there.
_NOT_HANDED_OVER = frozenset(
    {"producer", "publisher", "connection", "router", "result_cls", "task_type", "add_to_parent"}
)

_worker_pid: int | None = None


def worker_started() -> None:
    """Declare that a worker runs inside this process."""
    global _worker_pid
    _worker_pid = os.getpid()


def worker_stopped() -> None:
    """Take `worker_started()` back."""
    global _worker_pid
    _worker_pid = None


def is_embedded() -> bool:
    """Whether a worker runs inside this process, with the hub."""
    return _worker_pid == os.getpid()


def is_in_memory(app: Celery) -> bool:
    """Whether the broker is the memory of a process."""
    return str(app.conf.broker_write_url or app.conf.broker_url or "").startswith("memory:")


def is_needed(app: Celery) -> bool:
    """Whether a task that this process sends would stay in its memory, though the hub has a process to run it."""
    return bool(conf.get("HUB_SOCKET")) and not is_embedded() and is_in_memory(app)


def send(app: Celery, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> AsyncResult[Any]:
    """Send a task through the hub's socket. Raises OperationalError when there is no worker behind it."""
    if not local.is_remote():
        raise OperationalError(
            "no worker runs tasks of this hub: start it with `manage.py runhub` without --no-worker, "
            "or name a broker in CELERY_BROKER_URL"
        )
    task_id = options.get("task_id") or uuid()
    handed = {option: value for option, value in options.items() if option not in _NOT_HANDED_OVER}
    body = json.dumps({"name": name, "args": args, "kwargs": kwargs, "options": {**handed, "task_id": task_id}})
    try:
        local.owner.call("task", body=body)
    except LogUnavailable as error:
        raise OperationalError(f"the task {name} was not sent: {error}") from error
    make_result = options.get("result_cls") or app.AsyncResult
    result: AsyncResult[Any] = make_result(task_id)
    return result


async def take(body: str) -> str:
    """The operation `task` of the hub's socket: queue a task that another process sent; returns its id."""
    return await asyncio.to_thread(_queue, body)


def _queue(body: str) -> str:
    from workers.celery import app  # the application hands over with this module

    with _queueing:
        task = json.loads(body)
        return str(app.send_task(task["name"], task["args"], task["kwargs"], **task["options"]).id)


# The tasks of one sender keep their order, though each is queued from another thread.
_queueing = threading.Lock()
