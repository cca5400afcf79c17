"""What the tests of the outbox share: rows left behind as by a dead process, and databases that refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connection, transaction

from notifications.events import publish
from notifications.events.selectors import history


class Died(Exception):
    """The process ended here."""


def die() -> None:
    """An `on_commit` callback after which no other is called."""
    raise Died


def leave_behind(topic: str, *data: Any) -> None:
    """Commit events that nobody numbers, as if the process had died right after its commit."""
    with suppress(Died), transaction.atomic():
        transaction.on_commit(die)
        for item in data:
            publish(topic, "message", item)


@contextmanager
def refusing(table: str, condition: str) -> Iterator[None]:
    """A database that refuses updates of a table's rows for which `condition` (on NEW) holds."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                f"CREATE TRIGGER refusing BEFORE UPDATE ON {table} WHEN {condition} "
                "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
            )
        else:
            cursor.execute(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'refused by the test'; END $$"
            )
            cursor.execute(
                f"CREATE TRIGGER refusing BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({condition}) "
                "EXECUTE FUNCTION refuse()"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refusing" + ("" if connection.vendor == "sqlite" else f" ON {table}"))


def kept(topic: str) -> list[tuple[int | None, Any]]:
    """The offsets and the data of a topic's events."""
    return [(event.offset, event.data) for event in history(topic, limit=None)[0]]
