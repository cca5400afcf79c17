"""Whatever is published, lost, trimmed and destroyed while clients come and go: they get what a simple model says.

Clients remember, as the SDKs do, where they were. Whenever things are quiet, what they were told is held against a
plain list of what was published: there is no hole, or the hub has said so, which it does only where its log does not
reach back any more.

`HUB_FUZZ_EXAMPLES` sets how many examples are tried, with new ones in every run; without it they are always the same.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
from channels.layers import channel_layers
from django.db import transaction
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from pytest_django import Settings

from notifications.delivery import housekeeping, switchboard
from notifications.delivery.switchboard import Switchboard
from notifications.events import Cursor, Event, Topic, apublish, durable, ephemeral, messenger, publish, window
from notifications.events.logs import log_for, memory_log, outbox
from notifications.events.logs.database import prune_topic
from notifications.events.logs.epochs import begin_epoch
from notifications.events.logs.redis import RedisLog
from notifications.events.models import TopicHead
from notifications.events.services import Publication as Planned
from notifications.events.services import aremove_history, publish_many
from notifications.events.threads import in_database_thread
from notifications.events.topics import registry
from tests.delivery.reference import (
    MAX_HISTORY,
    SIZE,
    Answered,
    Client,
    Reference,
    Span,
    WaywardMemoryLayer,
    WaywardRedisLayer,
    fates,
)
from tests.delivery.watched import EXAMPLES, errors_in, until
from tests.events.outbox import leave_behind
from tests.servers import PROJECT

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]

CLIENTS, PROCESSES = 3, 2


# The topics.


class Anybodys(Topic):
    asks_only_identity = True

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True


class Window(Anybodys):
    pattern = "window:<name>"
    retention = window(size=SIZE, seconds=3_600)


class Lasting(Anybodys):
    pattern = "lasting:<name>"
    retention = durable(days=1, size=SIZE)


class Passing(Anybodys):
    pattern = "passing:<name>"
    retention = ephemeral()


DECLARED = (Window, Lasting, Passing)


# The machine.


class RolledBack(Exception):
    """Ends a transaction."""


_examples = itertools.count(1)

slots = st.integers(0, CLIENTS - 1)
processes = st.integers(0, PROCESSES - 1)
topics = st.integers(0, 2)
turns = st.integers(0, 12)


class Recovery(RuleBasedStateMachine):
    """Clients of two processes, on topics of their own."""

    #: The kinds of its topics, and the loop on which all happens.
    kinds: ClassVar[tuple[str, ...]] = ()
    runner: ClassVar[asyncio.Runner]
    redis_url: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        example = next(_examples)
        self.references = {
            name: Reference(name) for name in (f"{kind}:{example}{index}" for index, kind in enumerate(self.kinds))
        }
        self.names = list(self.references)
        self.violations: list[Exception] = []
        self.clients = [Client(self.references, self.violations) for _ in range(CLIENTS)]
        self.boards: list[Switchboard] = []
        self.numbers = itertools.count(1)
        self.excluded: dict[int, str] = {}
        #: What was not announced to a process once and in time.
        self.wayward: set[tuple[str, int]] = set()
        fates.of.clear()
        fates.late.clear()
        self.run(self._begin())

    async def _begin(self) -> None:
        for _ in range(PROCESSES):
            self.boards.append(Switchboard())
            await self.boards[-1].start()
        for slot, client in enumerate(self.clients):
            client.connect(self.boards[slot % PROCESSES])
            for name in self.names:
                client.subscribe(name, None)
        await self._settle()

    def run(self, act: Coroutine[Any, Any, None]) -> None:
        try:
            self.runner.run(act)
        finally:
            # First, as it may be why something else is not as it should be.
            for violation in self.violations:
                raise violation

    # What is published.

    def fate_of(self, fate: str, process: int, reference: Reference, numbers: list[int]) -> None:
        """Have one of what is to be published go astray on its way to a process, or to all."""
        if fate == "" or not numbers or (fate != "lost" and not reference.kept):
            return
        number = numbers[len(numbers) // 2]
        for board in self.boards if process == PROCESSES else [self.boards[process]]:
            fates.of[board.channel, number] = fate
            self.wayward.add((board.channel, number))
            if fate != "twice":
                reference.withheld[board.channel].add(number)

    @rule(
        which=topics,
        size=st.sampled_from([1, 1, 1, 2, 3, SIZE + 1, MAX_HISTORY + 1]),
        how=st.sampled_from(["each", "each", "together", "many"]),
        fate=st.sampled_from(["", "", "", "", "lost", "lost", "late", "twice"]),
        process=st.integers(0, PROCESSES),
        exclude=st.sampled_from([None, None, None, 0, 1, 2]),
        then=turns,
    )
    def publish(self, which: int, size: int, how: str, fate: str, process: int, exclude: int | None, then: int) -> None:
        name = self.names[which]
        reference, numbers = self.references[name], list(itertools.islice(self.numbers, size))
        excluded = self.clients[exclude].connection if exclude is not None else None
        if excluded is not None:
            self.excluded.update(dict.fromkeys(numbers, excluded.session.id))
        self.fate_of(fate, process, reference, numbers)
        self.run(self._publish(reference, numbers, how, excluded.session.id if excluded else None, then))

    async def _publish(
        self, reference: Reference, numbers: list[int], how: str, exclude: str | None, then: int
    ) -> None:
        def one(number: int) -> Awaitable[Event]:
            return apublish(reference.name, "message", number, key=f"key {number % 3}", exclude=exclude)

        reference.busy, reference.under_way = True, numbers
        if how == "many":
            planned = [Planned(reference.name, "message", number, exclude=exclude) for number in numbers]
            events = await in_database_thread(publish_many, planned)
        elif how == "together":
            events = await asyncio.gather(*map(one, numbers))
        else:
            events = [await one(number) for number in numbers]
        reference.busy, reference.under_way = False, []
        if reference.kept:
            events = sorted(events, key=lambda event: event.offset or 0)
            offset = reference.states[-1].offset
            assert [event.offset for event in events] == list(range(offset + 1, offset + len(numbers) + 1))
            reference.append([event.data for event in events])
            reference.name_epoch(events[0].epoch)
        else:
            reference.append(numbers)
        await _turn(then)

    @rule(
        sizes=st.lists(st.integers(0, 3), min_size=3, max_size=3),
        how=st.sampled_from(["commit", "commit", "rollback", "die"]),
        fate=st.sampled_from(["", "", "lost", "late"]),
        process=st.integers(0, PROCESSES),
    )
    def transact(self, sizes: list[int], how: str, fate: str, process: int) -> None:
        planned = []
        for name, size in zip(self.names, sizes, strict=True):
            reference, numbers = self.references[name], list(itertools.islice(self.numbers, size))
            if how == "die" and not reference.durable:
                continue  # what such a publisher had for it is lost
            planned.append((reference, numbers))
            if how != "rollback":
                self.fate_of(fate, process, reference, numbers)
        self.run(self._transact(planned, how))

    async def _transact(self, planned: list[tuple[Reference, list[int]]], how: str) -> None:
        for reference, numbers in planned:
            reference.busy, reference.under_way = True, [] if how == "rollback" else numbers
        await in_database_thread(_in_a_transaction, [(found.name, numbers) for found, numbers in planned], how)
        for reference, numbers in planned:
            reference.busy, reference.under_way = False, []
            if how != "rollback" and numbers:
                reference.append(numbers)
                await _name_epoch(reference)

    # What becomes of the logs.

    @rule(which=topics, how=st.sampled_from(["remove", "prune", "begin epoch", "destroy"]))
    def harm(self, which: int, how: str) -> None:
        """What is kept of a topic, or of all that its log has, is trimmed or lost."""
        reference = self.references[self.names[which]]
        if not reference.kept:
            return
        alike = [found for found in self.references.values() if found.kept and found.durable == reference.durable]
        if how == "remove":
            self.run(self._change([reference], aremove_history(topic=reference.name), Reference.remove))
        elif how == "prune" and reference.durable:
            self.run(self._change([reference], in_database_thread(_prune, reference.name), Reference.prune))
        elif how == "begin epoch" and reference.durable:
            self.run(self._change(alike, in_database_thread(begin_epoch), Reference.begin_epoch))
        elif how == "begin epoch" and self.redis_url:
            begin_epochs = RedisLog(self.redis_url).begin_epochs
            self.run(self._change(alike, asyncio.to_thread(begin_epochs), Reference.begin_epoch))
        elif how == "destroy" and not reference.durable:
            self.run(self._change(alike, asyncio.to_thread(self._destroy), Reference.destroy))

    async def _change(
        self, changed: list[Reference], act: Awaitable[object], then: Callable[[Reference], None]
    ) -> None:
        for reference in changed:
            reference.busy = True
        await act
        for reference in changed:
            reference.busy = False
            then(reference)
            if reference.numbers:  # where nothing is left, whoever asks first begins an epoch
                await _name_epoch(reference)

    def _destroy(self) -> None:
        if self.redis_url:
            with redis.Redis.from_url(self.redis_url) as client:
                client.flushall()
        else:
            memory_log.cache_clear()

    # What clients and processes do.

    @rule(
        slot=slots,
        which=topics,
        how=st.sampled_from(["recover", "recover", "fresh", "first", "ahead"]),
        process=processes,
        then=turns,
    )
    def subscribe(self, slot: int, which: int, how: str, process: int, then: int) -> None:
        self.run(self._subscribe(slot, [self.names[which]], how, process, then))

    @rule(slot=slots, process=processes, drops=st.booleans(), then=turns)
    def come_back(self, slot: int, process: int, drops: bool, then: int) -> None:
        """A client is back on all its topics, as after a lost connection."""
        if drops:
            self.clients[slot].drop()
        self.run(self._subscribe(slot, self.names, "recover", process, then))

    @rule(
        slot=slots,
        which=topics,
        process=processes,
        missed=st.integers(1, SIZE - 1),
        fate=st.sampled_from(["", "lost", "late"]),
        then=turns,
        size=st.integers(1, 2),
        own=st.booleans(),
        end=st.sampled_from([None, None, "begin epoch", "destroy"]),
    )
    def come_back_amid(
        self,
        slot: int,
        which: int,
        process: int,
        missed: int,
        fate: str,
        then: int,
        size: int,
        own: bool,
        end: str | None,
    ) -> None:
        """What a client missed is read, or will be, or was, when more is published, perhaps by itself.

        Of the newest event that it missed its process may not know, and at last the log may end.
        """
        self.clients[slot].drop()
        self.publish(which, missed, "each", "", 0, None, 0)
        if fate:
            self.publish(which, 1, "each", fate, process, None, 0)
        self.run(self._subscribe(slot, [self.names[which]], "recover", process, then))
        self.publish(which, size, "each", "", 0, slot if own else None, 0)
        if end is not None:
            self.harm(which, end)
            self.publish(which, 1, "each", "", 0, None, 0)

    async def _subscribe(self, slot: int, names: list[str], how: str, process: int, then: int) -> None:
        client = self.clients[slot]
        if client.connection is None:
            client.connect(self.boards[process])
        for name in names:
            if name not in client.spans and not client.asks("subscribe", name):
                cursor = client.cursors.get(name, Cursor())
                since = {"first": Cursor(), "ahead": Cursor(cursor.offset + 4, cursor.epoch), "fresh": None}
                client.subscribe(name, since.get(how, cursor))
        await _turn(then)

    @rule(slot=slots, which=topics, again=st.booleans(), then=turns)
    def unsubscribe(self, slot: int, which: int, again: bool, then: int) -> None:
        client = self.clients[slot]
        if self.names[which] in client.spans:
            client.unsubscribe(self.names[which])
            if again:
                self.run(self._subscribe(slot, [self.names[which]], "recover", 0, then))

    @rule(which=st.integers(0, CLIENTS + PROCESSES - 1))
    def drop(self, which: int) -> None:
        """A client loses its connection, or a process is started anew."""
        if which < CLIENTS:
            self.clients[which].drop()
        else:
            self.run(self._restart(which - CLIENTS))

    async def _restart(self, process: int) -> None:
        await self.boards[process].stop()
        self.boards[process] = Switchboard()
        await self.boards[process].start()

    @rule(number=st.integers(1, 20), late=st.booleans())
    def turn(self, number: int, late: bool) -> None:
        """The loop goes on, and what was late may arrive."""
        self.run(self._turn(number, late))

    async def _turn(self, number: int, late: bool) -> None:
        if late:
            await self._come_late()
        await _turn(number)

    async def _come_late(self) -> None:
        late = fates.late.copy()
        fates.late.clear()
        for channel, message in late:
            await messenger.layer().send(channel, message)

    # The comparison.

    @rule()
    def quiet(self) -> None:
        self.run(self._settle())

    async def _settle(self) -> None:
        await _turn(3)
        fates.of.clear()
        await self._come_late()
        for reference in self.references.values():
            if reference.kept:
                await self._compare_log(reference)
        await until(self._is_quiet, self._unrest)
        for client in self.clients:
            for reference, process in client.told:
                assert reference.is_harmed(process), f"turned away from {reference.name}, where nothing was missed"
            for span, answered in client.answers:
                if span.reference.kept:
                    self._check_answer(span.reference, answered)
            for span in (*client.ended, *client.spans.values()):
                self._check_span(span)
            client.told, client.answers, client.ended = [], [], []
        for reference in self.references.values():
            del reference.states[:-1]
            reference.withheld.clear()

    async def _compare_log(self, reference: Reference) -> None:
        page = await log_for(reference.topic.retention).aread(reference.topic, since=None, limit=None)
        reference.name_epoch(page.position.epoch)
        state = reference.states[-1]
        assert page.position.offset == state.offset
        assert [event.decoded().data for event in page.events] == reference.numbers[state.oldest :]

    def _is_quiet(self) -> bool:
        """Whether nobody waits for anything; who was turned away subscribes again, as the SDKs do."""
        for client in self.clients:
            for topic in list(client.turned_away):
                client.subscribe(topic, client.cursors[topic])
        return not self._unrest()

    def _unrest(self) -> list[Any]:
        """What clients wait for, and what processes do not know yet."""
        found: list[Any] = [*self.violations]
        for client in self.clients:
            found += client.asked.values()
            found += client.turned_away
            for span in client.spans.values():
                if missing := self._missing(span):
                    found.append((span.reference.name, span.cursor, missing))
        for board in self.boards:
            for name, live in board.topics.items():
                state = self.references[name].states[-1]
                if self.references[name].kept and live.position != Cursor(state.offset, state.epoch or ""):
                    found.append((name, live.position, state))
        return found

    def _missing(self, span: Span) -> list[Any]:
        """What a subscriber has still to get."""
        reference = span.reference
        if not reference.kept:
            received = {found.number for found in span.received}
            return [number for number in self._due(span) if number not in received]
        if span.epoch != reference.states[-1].epoch:
            return [f"not in {reference.states[-1].epoch}"]
        return [number for number in reference.numbers[span.offset :] if self.excluded.get(number) != span.client]

    def _due(self, span: Span) -> list[int]:
        """What has to come on a topic without offsets: all but what was lost."""
        return [
            number
            for number in span.reference.numbers[span.first : span.last]
            if self.excluded.get(number) != span.client and (span.process, number) not in self.wayward
        ]

    def _check_answer(self, reference: Reference, answered: Answered) -> None:
        since, result, states = answered.since, answered.result, reference.states[: answered.states]
        told = f"{since} on {reference.name} is answered with {result}, after {states}"
        places = [state.offset for state in states if state.epoch in (None, result.epoch)]
        assert places, told
        assert result.was_recovering == (since is not None), told
        reached = result.offset + len(result.publications)
        assert min(places) <= reached <= max(places), told
        offsets = [publication.offset for publication in result.publications]
        assert offsets == list(range(result.offset + 1, reached + 1)), told
        if result.recovered:
            assert since is not None, told
            assert result.offset == since.offset, told
            assert since.epoch in ("", result.epoch), told
        else:
            assert not offsets, told
            assert since is None or not all(state.reaches(since) for state in states), told

    def _check_span(self, span: Span) -> None:
        reference = span.reference
        told = f"{span.received} from {span.checked} on {reference.name}"
        if not reference.kept:
            numbers = [found.number for found in span.received]
            places = [reference.numbers.index(number) for number in numbers]
            assert all(before < after for before, after in itertools.pairwise(places)), told
            assert all(self.excluded.get(number) != span.client for number in numbers), told
            due = [number for number in self._due(span) if span.last is None or number <= max(numbers, default=0)]
            assert set(due) <= set(numbers), told
            span.first, span.received = len(reference.numbers), []
            return
        at, run = span.checked, reference.runs.get(span.epoch, [])
        for offset, number, pushed in span.received:
            assert run[offset - 1 : offset] == [number], f"{told}: {run}"
            for skipped in run[at : offset - 1]:
                assert self.excluded.get(skipped) == span.client, f"{told}: {skipped} was left out"
            if pushed and not self._may_be_late(reference) and (span.process, number) not in self.wayward:
                assert self.excluded.get(number) != span.client, f"{told}: {number} was not for this client"
            at = offset
        span.checked, span.received = span.offset, []

    def _may_be_late(self, reference: Reference) -> bool:
        """Whether an announcement, by which alone is known who is not to get its event, may be overtaken by a look.

        What a thread or Redis announces may be, on a machine that does much else at the time.
        """
        return reference.durable or bool(self.redis_url)

    def teardown(self) -> None:
        try:
            if not self.violations:
                self.run(self._settle())
        finally:
            self.runner.run(self._end())

    async def _end(self) -> None:
        for client in self.clients:
            client.drop()
        for board in self.boards:
            await board.stop()


async def _turn(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def _name_epoch(reference: Reference) -> None:
    if reference.kept:
        positions = await log_for(reference.topic.retention).apositions([reference.topic])
        reference.name_epoch(positions[reference.name].epoch)


def _in_a_transaction(planned: list[tuple[str, list[int]]], how: str) -> None:
    if how == "die":
        for name, numbers in planned:
            leave_behind(name, *numbers)
        outbox.relay()
        return
    with suppress(RolledBack), transaction.atomic():
        for name, numbers in planned:
            for number in numbers:
                publish(name, "message", number)
        if how == "rollback":
            raise RolledBack


def _prune(name: str) -> None:
    for head in TopicHead.objects.filter(pk=name):
        prune_topic(head)


#: The topics of each machine, and how many examples it tries.
BACKENDS = {
    "memory": (("window", "window", "passing"), 100),
    "redis": (("window", "window", "passing"), 100),
    "database": (("lasting", "lasting", "window"), 40),
}


@pytest.fixture(params=list(BACKENDS))
def machine(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Recovery]]:
    """The machine for the log of the parameter."""
    settings.HUB_SOCKET = ""
    settings.HUB_MAX_HISTORY = MAX_HISTORY
    settings.HUB_POSITION_CHECK_SECONDS = 0.02
    monkeypatch.setattr(housekeeping, "LATE_SECONDS", 0.02)
    monkeypatch.setattr(switchboard, "LINGER_SECONDS", 0.005)
    layer: dict[str, Any] = {"BACKEND": f"{Reference.__module__}.{WaywardMemoryLayer.__name__}"}
    url = ""
    if request.param == "redis":
        url = settings.HUB_REDIS_URL = request.getfixturevalue("redis_url")
        layer = {
            "BACKEND": f"{Reference.__module__}.{WaywardRedisLayer.__name__}",
            "CONFIG": {"hosts": [{"address": url}]},
        }
    settings.CHANNEL_LAYERS = {"default": layer}
    channel_layers.backends.clear()
    for declaration in DECLARED:
        registry.register(declaration)
    with asyncio.Runner() as runner:
        kinds = BACKENDS[request.param][0]
        yield type("Recovery", (Recovery,), {"kinds": kinds, "runner": runner, "redis_url": url})
    for declaration in DECLARED:
        registry.unregister(declaration)


def test_clients_get_what_the_model_says(
    machine: type[Recovery], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=EXAMPLES or BACKENDS[request.node.callspec.params["machine"]][1],
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert errors_in(caplog) == []
    assert EXAMPLES or fates.seen == {"", "lost", "late", "twice"}


def test_clients_get_what_the_model_says_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """The machine of the database in a run of its own, with this one."""
    # In a folder of its own: pytest closes the shared one to others, in which the server's user has its files.
    folder = f"--basetemp={tmp_path / 'inner'}"
    test = f"{Path(__file__).relative_to(PROJECT)}::{test_clients_get_what_the_model_says.__name__}[database]"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", folder, test],
        cwd=PROJECT,
        env={**os.environ, "DATABASE_URL": postgres_url},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
