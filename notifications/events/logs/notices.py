"""PostgreSQL's NOTIFY and LISTEN, by which the relays of all processes hear that there may be something for them.

A notice is part of the transaction that stages events, so PostgreSQL sends it if the transaction commits, whatever
becomes of the process. As transactions with a notice commit one after the other in the whole database, a process
sends one in `NOTICE_SECONDS` at most; who hears one looks again that much later, and so finds what came after it.
On other databases nothing is sent, and relays look from time to time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

logger = logging.getLogger(__name__)

CHANNEL = "hub_outbox"
NOTICE_SECONDS = 0.25
#: How often a connection that hears nothing is asked whether it still is one.
CHECK_SECONDS = 30.0

_sent_at = 0.0


def are_heard(using: str) -> bool:
    """Whether the database is one that sends notices."""
    if connections[using].vendor != "postgresql":
        return False
    try:
        import psycopg  # noqa: F401 - Django also takes psycopg2, which has no connections for event loops
    except ImportError:
        return False
    return True


def send_with_transaction(using: str) -> bool:
    """Have the current transaction tell of what it stages when it commits, unless this process told a moment ago.

    Returns whether it will: `sent()` is to be called after the commit.
    """
    if connections[using].vendor != "postgresql" or time.monotonic() < _sent_at + NOTICE_SECONDS:
        return False
    with connections[using].cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")
    return True


def sent() -> None:
    """Note that a transaction committed that had a notice: only then did others hear it."""
    global _sent_at
    _sent_at = time.monotonic()


def unannounced(topic: str, *, using: str) -> None:
    """Ask the processes that serve a topic to look at it, as the channel layer does not take its announcements."""
    if connections[using].vendor != "postgresql":
        return
    try:
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, topic])
    except (DatabaseError, InterfaceError) as error:
        logger.warning("nobody was told of events of %s: %s", topic, error)


async def listen(using: str) -> AsyncGenerator[str]:
    """The notices of the database, on a connection of its own: the topic of one that names it, "" for others.

    The first comes as soon as it listens. Raises psycopg's OperationalError when the connection is lost.
    """
    import psycopg

    async with await psycopg.AsyncConnection[Any].connect(**_parameters(using), autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        yield ""
        while True:
            async with aclosing(connection.notifies(timeout=CHECK_SECONDS)) as notices:
                async for notice in notices:
                    yield notice.payload
            await connection.execute("SELECT 1")


def _parameters(using: str) -> dict[str, Any]:
    """How Django connects, without what is for its own cursors."""
    parameters = connections[using].get_connection_params()
    for own in ("cursor_factory", "context"):
        parameters.pop(own, None)
    return parameters
