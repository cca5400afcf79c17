"""Every log does what a simple model of one does, whatever is appended, read, removed and pruned in whatever order.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import redis
from django.db import transaction
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pytest_django import Settings

from notifications.events import Cursor, Topic, durable, window
from notifications.events.event import new_event
from notifications.events.logs import Draft, log_for
from notifications.events.logs.database import prune_topic
from notifications.events.logs.numbering import number_and_announce
from notifications.events.models import TopicHead
from notifications.events.topics import registry, resolve

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

EXAMPLES = int(os.environ.get("HUB_FUZZ_EXAMPLES", "0"))
SIZE = 4


class Asked(NamedTuple):
    """An event as it is asked for."""

    data: int
    key: str | None = None
    version: int = 0
    version_epoch: str = ""
    keep: bool = True


class Kept(NamedTuple):
    """An event as it is kept."""

    offset: int
    data: int


class Outcome(NamedTuple):
    """What comes of an event: where it is, whether nothing was appended, and whether that was for its version."""

    offset: int
    repeated: bool = False
    dropped: bool = False


class Model:
    """What a log has to do with one topic, as plainly as it can be said.

    The `durable` one keeps all events until it is pruned, and its idempotency keys are kept with their events. What
    is `pending` there was committed by a publisher that died before it was numbered.
    """

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.offset = 0
        self.events: list[Kept] = []
        self.keys: dict[str, Kept] = {}
        self.last_version = (0, "")
        self.pending: list[Asked] = []

    def append(self, asked: Asked) -> Outcome:
        """The offset of the event, and whether nothing was appended."""
        if asked.key is not None and asked.key in self.keys:
            return Outcome(self.keys[asked.key].offset, repeated=True)
        if not asked.keep:
            if asked.key is not None:
                self.keys[asked.key] = Kept(0, asked.data)
            return Outcome(0)
        if asked.version:
            version, epoch = self.last_version
            if asked.version <= version and asked.version_epoch == epoch:
                return Outcome(self.offset, repeated=True, dropped=True)
            self.last_version = asked.version, asked.version_epoch
        self.offset += 1
        event = Kept(self.offset, asked.data)
        self.events.append(event)
        if asked.key is not None:
            self.keys[asked.key] = event
        if not self.durable:
            self.prune()
        return Outcome(self.offset)

    def number(self) -> None:
        """Give offsets to what is pending."""
        pending, self.pending = self.pending, []
        for asked in pending:
            self.append(asked)

    def prune(self) -> None:
        self.events = [event for event in self.events if event.offset > self.offset - SIZE]
        self._forget_keys()

    def remove(self) -> None:
        self.events = []
        self._forget_keys()

    def _forget_keys(self) -> None:
        if self.durable:
            self.keys = {key: event for key, event in self.keys.items() if event in self.events}

    def read(self, since: int | None, limit: int | None, *, reverse: bool) -> list[Kept]:
        events = self.events
        if since is not None:
            events = [event for event in events if (event.offset < since if reverse else event.offset > since)]
        return (events[::-1] if reverse else events)[:limit]


def asked(*, durable: bool) -> st.SearchStrategy[Asked]:
    return st.builds(
        Asked,
        data=st.integers(0, 9),
        key=st.none() | st.sampled_from(["k", "l"]),
        version=st.just(0) | st.integers(1, 4),
        version_epoch=st.sampled_from(["", "e"]),
        keep=st.just(True) if durable else st.sampled_from([True, True, True, False]),
    )


_examples = itertools.count(1)


class LogMachine(RuleBasedStateMachine):
    """Asks a log and its model the same."""

    durable = False

    def __init__(self) -> None:
        super().__init__()
        number = next(_examples)
        self.topics = [resolve(f"model:{number}-{letter}") for letter in "ab"]
        self.models = [Model(durable=self.durable) for _ in self.topics]
        self.log = log_for(self.topics[0].retention)
        self.epochs = [self.log.read(topic, since=None, limit=0).position.epoch for topic in self.topics]

    def drafts(self, which: int, events: list[Asked]) -> list[Draft]:
        topic = self.topics[which]
        return [
            Draft(
                topic,
                new_event(topic=topic.name, type="message", data=event.data),
                idempotency_key=event.key,
                version=event.version,
                version_epoch=event.version_epoch,
                keep=event.keep,
            )
            for event in events
        ]

    def append(self, which: int, events: list[Asked]) -> None:
        model = self.models[which]

        appended = self.log.append(self.drafts(which, events))

        found = [(event.offset, repeated) for event, repeated in appended]
        note(f"{events} on {self.topics[which].name}: {found}")
        model.number()
        outcomes = [model.append(event) for event in events]
        # All that one call appends to a durable log is numbered together, before it looks for what was dropped.
        assert found == [
            (model.offset if outcome.dropped and self.durable else outcome.offset, outcome.repeated)
            for outcome in outcomes
        ]

    @rule(which=st.integers(0, 1), where=st.none() | st.integers(0, 12), limit=st.none() | st.integers(0, 5))
    def read(self, which: int, where: int | None, limit: int | None) -> None:
        since = None if where is None else Cursor(where, self.epochs[which])
        for reverse in (False, True):
            page = self.log.read(self.topics[which], since=since, limit=limit, reverse=reverse)
            found = [Kept(event.offset or 0, event.decoded().data) for event in page.events]
            assert found == self.models[which].read(where, limit, reverse=reverse)
            assert page.position == Cursor(self.models[which].offset, self.epochs[which])

    @rule(which=st.integers(0, 1))
    def remove(self, which: int) -> None:
        self.log.remove(self.topics[which])
        self.models[which].remove()

    @invariant()
    def positions_agree(self) -> None:
        found = self.log.positions(self.topics)
        for topic, model, epoch in zip(self.topics, self.models, self.epochs, strict=True):
            assert found[topic.name] == Cursor(model.offset, epoch)


class RolledBack(Exception):
    """Ends a transaction."""


class WindowMachine(LogMachine):
    @rule(which=st.integers(0, 1), events=st.lists(asked(durable=False), min_size=1, max_size=4))
    def append_some(self, which: int, events: list[Asked]) -> None:
        self.append(which, events)


class DurableMachine(LogMachine):
    """With transactions that are rolled back, and processes that die before what they committed is numbered."""

    durable = True

    @rule(which=st.integers(0, 1), events=st.lists(asked(durable=True), min_size=1, max_size=4))
    def append_some(self, which: int, events: list[Asked]) -> None:
        # A version is looked at when events are numbered, and a key before: where a key comes twice in one call, and
        # the first is dropped for its version, the second is taken for its repetition.
        times = Counter(event.key or "" for event in events)
        self.append(
            which, [event._replace(version=0) if event.key and times[event.key] > 1 else event for event in events]
        )

    @rule(which=st.integers(0, 1), events=st.lists(asked(durable=True), min_size=1, max_size=4))
    def roll_back(self, which: int, events: list[Asked]) -> None:
        with contextlib.suppress(RolledBack), transaction.atomic():
            self.log.append(self.drafts(which, events))
            raise RolledBack

    @rule(which=st.integers(0, 1), events=st.lists(asked(durable=True), min_size=1, max_size=4))
    def die_after_the_commit(self, which: int, events: list[Asked]) -> None:
        events = [event._replace(key=None) for event in events]
        with transaction.atomic():
            self.log.append(self.drafts(which, events))
            transaction.get_connection().run_on_commit.clear()
        self.models[which].pending += events

    @rule()
    def relay(self) -> None:
        for topic, model in zip(self.topics, self.models, strict=True):
            number_and_announce(topic.name)
            model.number()

    @rule(which=st.integers(0, 1))
    def prune(self, which: int) -> None:
        for head in TopicHead.objects.filter(pk=self.topics[which].name):
            prune_topic(head)
        self.models[which].prune()


@pytest.fixture(params=["memory", "redis", "database"])
def machine(request: pytest.FixtureRequest, settings: Settings) -> Iterator[type[LogMachine]]:
    """The machine for the log of the parameter, with its topic declared."""
    settings.HUB_SOCKET = ""
    is_durable = request.param == "database"
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        settings.HUB_REDIS_URL = url
    kept: Any = durable(days=1, size=SIZE) if is_durable else window(size=SIZE, seconds=60)

    class ModelTopic(Topic):
        pattern = "model:<name>"
        retention = kept

    registry.register(ModelTopic)
    yield DurableMachine if is_durable else WindowMachine
    registry.unregister(ModelTopic)


def test_a_log_does_what_its_model_does(machine: type[LogMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=EXAMPLES or (10 if machine.durable else 25),
            stateful_step_count=20,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
