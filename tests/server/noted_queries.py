"""The hub's settings, with a line in the file NOTED_QUERIES for each query that a process sends to its database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from django.db.backends.signals import connection_created

from hub.settings import *  # noqa: F403

_file = os.open(os.environ["NOTED_QUERIES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _watch(connection: Any, **_: Any) -> None:
    connection.execute_wrappers.append(_note)


def _note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
    place = "thread" if asyncio._get_running_loop() is None else "event loop"
    os.write(_file, f"{place}: {' '.join(sql.split())}\n".encode())
    return execute(sql, params, many, context)


connection_created.connect(_watch)
