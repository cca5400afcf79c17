"""Tasks that publish, for the workers of these tests."""

from __future__ import annotations

import time
from typing import Any

from django.db import DatabaseError

from notifications.events import publish
from notifications.events.exceptions import LogUnavailable
from tests.chaos.ledger import Ledger, Outcome, key_of
from workers import app

FAILURES = (LogUnavailable, DatabaseError)


@app.task(name="chaos.publish_one", bind=True, max_retries=None)
def publish_one(self: Any, ledger: str, topic: str, series: str, number: int, repeats: bool) -> None:
    """Publish one event; where it `repeats`, until it is promised, and in the end published once."""
    lines = Ledger(ledger)
    try:
        lines.write(Outcome.ATTEMPTED, topic, series, number, ordered=False)
        key = key_of(series, number)
        try:
            event = publish(topic, "chaos", {"key": key}, idempotency_key=key)
        except FAILURES as error:
            lines.write(Outcome.UNKNOWN, topic, series, number, ordered=False)
            if repeats:
                raise self.retry(exc=error, countdown=0.5) from error
            return
        lines.write(Outcome.PROMISED, topic, series, number, ordered=False, offset=event.offset, epoch=event.epoch)
    finally:
        lines.close()


@app.task(name="chaos.publish_slowly", bind=True, max_retries=None, acks_late=True)
def publish_slowly(self: Any, ledger: str, topic: str, series: str, steps: int, pause: float) -> None:
    """Publish several events with a pause after each, so that a worker can be killed between them."""
    lines = Ledger(ledger)
    try:
        for number in range(1, steps + 1):
            lines.write(Outcome.ATTEMPTED, topic, series, number)
            key = key_of(series, number)
            try:
                publish(topic, "chaos", {"key": key}, idempotency_key=key)
            except FAILURES as error:
                raise self.retry(exc=error, countdown=0.5) from error
            time.sleep(pause)
    finally:
        lines.close()
