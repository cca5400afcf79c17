"""Any course of transactions, deaths and relays against a reference: each committed event once, in order, no hole."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection, connections, transaction
from hypothesis import HealthCheck
from hypothesis import settings as bounded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pytest_django import Settings

from notifications.events import publish
from notifications.events.logs import numbering, outbox
from notifications.events.relay import Relay
from tests.events.outbox import Died, die, kept

pytestmark = pytest.mark.django_db(transaction=True)

TOPICS = ("a", "b")
NEVER = float("inf")
_examples = itertools.count()


@dataclass
class Fact:
    """An event as the reference knows it: what was staged with it in order, when it was, and when it was committed."""

    topic: str
    number: int
    row: object
    staged: int
    committed: float = NEVER


@dataclass
class Publisher:
    """A thread with a connection of its own, and what its open transaction has staged."""

    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    atomic: transaction.Atomic | None = None
    staged: list[Fact] = field(default_factory=list)

    def soon(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.thread.submit(function, *arguments)

    def now(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.soon(function, *arguments).result(30)


def end(atomic: transaction.Atomic, how: str) -> None:
    """Commit, roll back, or commit and die before anything can be numbered."""
    if how == "rollback":
        transaction.set_rollback(True)
    with suppress(Died):
        atomic.__exit__(None, None, None)


def begin(dies: bool) -> transaction.Atomic:
    atomic = transaction.atomic()
    atomic.__enter__()
    if dies:
        transaction.on_commit(die)
    return atomic


def publish_and_undo(topic: str) -> None:
    """Publish within a savepoint that is rolled back."""
    with transaction.atomic():
        publish(topic, "message", -1)
        transaction.set_rollback(True)


def publish_each(topic: str, numbers: list[int]) -> None:
    """Publish one after the other, each in a transaction of its own."""
    for number in numbers:
        publish(topic, "message", number)


class Outbox(RuleBasedStateMachine):
    """Two publishers and two relays on two topics of their own."""

    one_writer = False

    def __init__(self) -> None:
        super().__init__()
        example = next(_examples)
        self.names = {topic: f"ledger:{example}{topic}" for topic in TOPICS}
        self.publishers = [Publisher(), Publisher()]
        self.relays = [Publisher(), Publisher()]
        self.looking = [Relay(), Relay()]
        self.facts: list[Fact] = []
        self.seen: dict[str, list[tuple[int | None, Any]]] = {topic: [] for topic in TOPICS}
        self.clock = 0

    def open(self) -> list[Publisher]:
        return [publisher for publisher in self.publishers if publisher.atomic is not None]

    def blocked(self) -> bool:
        """Whether an open transaction keeps everybody else from writing."""
        return self.one_writer and bool(self.open())

    def fact(self, topic: str, row: object, *, committed: float = NEVER) -> Fact:
        fact = Fact(topic, len(self.facts), row, self.clock, committed)
        self.facts.append(fact)
        return fact

    @rule(who=st.integers(0, 1), dies=st.booleans())
    def begin(self, who: int, dies: bool) -> None:
        publisher = self.publishers[who]
        if publisher.atomic is None and not self.blocked():
            publisher.atomic = publisher.now(begin, dies)

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1), topic=st.sampled_from(TOPICS), undone=st.booleans())
    def stage(self, which: int, topic: str, undone: bool) -> None:
        publisher = self.open()[which % len(self.open())]
        if undone:
            publisher.now(publish_and_undo, self.names[topic])
        self.clock += 1
        fact = self.fact(topic, publisher.atomic)
        publisher.now(publish, self.names[topic], "message", fact.number)
        publisher.staged.append(fact)

    @precondition(lambda self: self.open())
    @rule(which=st.integers(0, 1), how=st.sampled_from(["commit", "commit", "rollback"]))
    def end(self, which: int, how: str) -> None:
        self.finish(self.open()[which % len(self.open())], how).result(30)

    def finish(self, publisher: Publisher, how: str) -> Future[Any]:
        self.clock += 1
        for fact in publisher.staged:
            fact.committed = self.clock if how == "commit" else NEVER
        atomic, publisher.atomic, publisher.staged = publisher.atomic, None, []
        return publisher.soon(end, atomic, how)

    @precondition(lambda self: not self.blocked())
    @rule(which=st.integers(0, 1))
    def look(self, which: int) -> None:
        self.relays[which].now(self.looking[which].look)

    @precondition(lambda self: not self.blocked())
    @rule(which=st.integers(0, 1))
    def relay(self, which: int) -> None:
        self.relays[which].now(outbox.relay)

    @rule(sizes=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(TOPICS)), min_size=2, max_size=2))
    def everything_at_once(self, sizes: list[tuple[int, str]]) -> None:
        """Open transactions commit, the others publish outside of one, and both relays run, all together."""
        running = [relay.soon(outbox.relay) for relay in self.relays]
        begun, self.clock = self.clock + 1, self.clock + 1
        for publisher, (size, topic) in zip(self.publishers, sizes, strict=True):
            if publisher.atomic is not None:
                running.append(self.finish(publisher, "commit"))
                continue
            row = object()
            facts = [self.fact(topic, row, committed=self.clock) for _ in range(size)]
            running.append(publisher.soon(publish_each, self.names[topic], [fact.number for fact in facts]))
        for future in running:
            future.result(30)
        self.clock += 1
        for fact in self.facts:  # of what happened together, nothing was first
            if begun <= fact.committed < NEVER:
                fact.committed = self.clock

    @invariant()
    def what_was_seen_stays_and_is_committed(self) -> None:
        committed = {fact.number for fact in self.facts if fact.committed < NEVER}
        for topic, name in self.names.items():
            found = kept(name)
            assert found[: len(self.seen[topic])] == self.seen[topic]
            assert [offset for offset, _ in found] == list(range(1, len(found) + 1))
            assert {number for _, number in found} <= committed
            self.seen[topic] = found

    def teardown(self) -> None:
        try:
            for publisher in self.open():
                self.finish(publisher, "rollback").result(30)
            outbox.relay()
            self.what_was_seen_stays_and_is_committed()
            self.what_was_committed_was_seen()
        finally:
            for actor in (*self.publishers, *self.relays):
                actor.now(connections.close_all)
                actor.thread.shutdown()

    def what_was_committed_was_seen(self) -> None:
        assert outbox.pending() == {}
        for topic in TOPICS:
            facts = {fact.number: fact for fact in self.facts if fact.topic == topic and fact.committed < NEVER}
            order = [facts[number] for _, number in self.seen[topic]]
            assert len(order) == len(facts)
            for earlier, later in itertools.combinations(order, 2):
                assert later.committed >= earlier.staged
                assert later.row is not earlier.row or later.number > earlier.number


def test_every_committed_event_is_sent_once_and_in_order(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.HUB_SOCKET = ""
    Outbox.one_writer = connection.vendor == "sqlite"
    if not Outbox.one_writer:
        # The threads stand for processes, between which nothing but the database makes an order.
        own = threading.local()
        monkeypatch.setattr(numbering, "_order_of", lambda name: vars(own).setdefault("order", threading.Lock()))

    run_state_machine_as_test(
        Outbox,
        settings=bounded(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
