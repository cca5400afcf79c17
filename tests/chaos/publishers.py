"""A process that publishes in every way there is, and notes what was promised to it.

It takes commands as lines of JSON, `{"do": name, …}`, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import django
import httpx
import msgspec

django.setup()

from django.db import DatabaseError, connections, transaction  # noqa: E402 - Django must be set up before

from notifications.events import publish  # noqa: E402
from notifications.events.exceptions import LogUnavailable  # noqa: E402
from tests.chaos.ledger import Ledger, Outcome, key_of  # noqa: E402
from tests.chaos.tasks import publish_one, publish_slowly  # noqa: E402

TIMEOUT_SECONDS = 3.0
PERSISTENCE_SECONDS = 20.0


class Order(msgspec.Struct):
    """What is to be published, where to, and from when on a promise is one."""

    ledger: str
    name: str
    durable: list[str]
    window: list[str]
    servers: list[str]
    api_key: str
    seed: int
    pause: float = 0.02
    pad: int = 0
    kinds: tuple[str, ...] = ("http", "transactions", "tasks")
    #: Whether what a commit publishes to a window topic is promised by it: not where Redis may be away just then.
    window_after_commit: bool = True


class RolledBack(Exception):
    """Ends a transaction."""


class Publishers:
    """The threads that publish, each in its own way and in an order of its own."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.ledger = Ledger(order.ledger)
        self.stopping = threading.Event()
        ways: dict[str, Callable[[str, random.Random], None]] = {
            "http": self._requests,
            "transactions": self._transactions,
            "tasks": self._tasks,
        }
        self.failures: list[str] = []
        self.threads = [
            threading.Thread(target=self._run, args=(kind, ways[kind], number), daemon=True)
            for number, kind in enumerate(order.kinds)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> list[str]:
        """Let each end what it has begun; returns what went wrong with the publishers themselves."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(PERSISTENCE_SECONDS + 10)
            if thread.is_alive():
                self.failures.append(f"{thread.name} hangs")
        return self.failures

    def _run(self, kind: str, way: Callable[[str, random.Random], None], number: int) -> None:
        try:
            way(f"{self.order.name}.{kind}", random.Random(self.order.seed * 100 + number))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to hear of it
            self.failures.append(f"{kind}: {error!r}")
        finally:
            connections.close_all()

    def _data(self, key: str) -> dict[str, str]:
        return {"key": key, "pad": "x" * self.order.pad}

    def _topic(self, chance: random.Random) -> tuple[str, bool]:
        durable = bool(self.order.durable) and (not self.order.window or chance.random() < 0.5)
        return chance.choice(self.order.durable if durable else self.order.window), durable

    # The HTTP API.

    def _requests(self, series: str, chance: random.Random) -> None:
        number = 0
        with httpx.Client(headers={"X-API-Key": self.order.api_key}, timeout=TIMEOUT_SECONDS) as client:
            while not self.stopping.is_set():
                number += 1
                topic, durable = self._topic(chance)
                self.ledger.write(Outcome.ATTEMPTED, topic, series, number)
                self._request(client, topic, series, number, chance, persists=durable)
                self.stopping.wait(self.order.pause * chance.uniform(0.5, 1.5))

    def _request(
        self, client: httpx.Client, topic: str, series: str, number: int, chance: random.Random, *, persists: bool
    ) -> None:
        """Publish; where it `persists`, again and again with the same idempotency key until it is promised.

        To a window topic it goes once: a Redis that loses its memory loses the keys as well.
        """
        key = key_of(series, number)
        body = {"channel": topic, "data": self._data(key), "idempotency_key": key}
        give_up = time.monotonic() + PERSISTENCE_SECONDS
        while True:
            server = chance.choice(self.order.servers)
            try:
                answer = client.post(f"http://{server}/api/publish", json=body)
                result = answer.json().get("result") if answer.status_code == 200 else None
            except (httpx.HTTPError, ValueError):
                result = None
            if result is not None:
                self.ledger.write(
                    Outcome.PROMISED, topic, series, number, offset=result.get("offset"), epoch=result.get("epoch", "")
                )
                return
            self.ledger.write(Outcome.UNKNOWN, topic, series, number)
            if not persists or time.monotonic() > give_up:
                return
            time.sleep(0.1)

    # Transactions.

    def _transactions(self, series: str, chance: random.Random) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            self._transaction(series, number, chance)
            self.stopping.wait(self.order.pause * chance.uniform(0.5, 1.5))

    def _transaction(self, series: str, number: int, chance: random.Random) -> None:
        """Publish to a durable and to a window topic in one transaction, of which a third is rolled back."""
        key, rolls_back = key_of(series, number), chance.random() < 0.34
        topics = [chance.choice(names) for names in (self.order.durable, self.order.window) if names]
        for topic in topics:
            self.ledger.write(Outcome.ATTEMPTED, topic, series, number)
        committing = False
        try:
            with transaction.atomic():
                for topic in topics:
                    publish(topic, "chaos", self._data(key))
                if rolls_back:
                    raise RolledBack
                committing = True
            outcome = Outcome.PROMISED
        except RolledBack:
            outcome = Outcome.ROLLED_BACK
        except (DatabaseError, LogUnavailable):
            outcome = Outcome.UNKNOWN if committing else Outcome.ROLLED_BACK
            connections.close_all()
            time.sleep(0.1)
        for topic in topics:
            kept = outcome is not Outcome.PROMISED or topic in self.order.durable or self.order.window_after_commit
            self.ledger.write(outcome if kept else Outcome.UNKNOWN, topic, series, number)

    # Tasks.

    def _tasks(self, series: str, chance: random.Random) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            topic, durable = self._topic(chance)
            try:
                publish_one.delay(self.order.ledger, topic, series, number, durable)
            except Exception:  # noqa: BLE001 - the broker is away, and each library on the way to it has its own
                time.sleep(0.1)
            self.stopping.wait(2 * self.order.pause * chance.uniform(0.5, 1.5))


def die_after_commit(topic: str, ledger: str, series: str, number: int) -> None:
    """Commit, and be killed before what was committed is sent."""
    lines = Ledger(ledger)
    lines.write(Outcome.ATTEMPTED, topic, series, number)

    def die() -> None:
        lines.write(Outcome.PROMISED, topic, series, number)
        os.kill(os.getpid(), signal.SIGKILL)

    with transaction.atomic():
        transaction.on_commit(die)
        publish(topic, "chaos", {"key": key_of(series, number)})


def dispatch(ledger: str, topics: list[str], series: str, tasks: int, steps: int, pause: float) -> None:
    """Send tasks to the workers; with each, what it publishes is promised."""
    lines = Ledger(ledger)
    for task in range(tasks):
        topic, name = topics[task % len(topics)], f"{series}{task}"
        publish_slowly.delay(ledger, topic, name, steps, pause)
        for number in range(1, steps + 1):
            lines.write(Outcome.PROMISED, topic, name, number)
    lines.close()


def main() -> None:
    running: Publishers | None = None
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        match command.pop("do"):
            case "start":
                running = Publishers(msgspec.convert(command, Order))
            case "stop" if running is not None:
                answer["failures"] = running.stop()
                running = None
            case "die_after_commit":
                die_after_commit(**command)
            case "dispatch":
                dispatch(**command)
            case "time":
                answer["time"] = time.time()
        print(json.dumps(answer), flush=True)  # noqa: T201 - this is how it answers


if __name__ == "__main__":
    main()
