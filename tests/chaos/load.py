"""Publishers and subscribers at work while something is broken, and the account of it afterwards."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec

from tests.chaos.companions import Companion
from tests.chaos.ledger import Entry, Ledger, Outcome, Promise, entries, key_of, promises
from tests.chaos.records import Account, Kind, Record, compare, read_records
from tests.chaos.site import Site
from tests.servers import eventually

ARRIVAL_SECONDS = 30.0
END = key_of("end", 1)


class Chaos:
    """How long and how hard the scenarios are, and the chance that decides in them."""

    def __init__(self, *, long: bool, seed: int) -> None:
        self.long = long
        self.seed = seed
        self.clients = 100 if long else 20
        self.pause = 0.03 if long else 0.02

    def seconds(self, short: float, long: float) -> float:
        """How long something lasts."""
        return long if self.long else short

    def rounds(self) -> Iterator[int]:
        """How often a fault comes."""
        yield from range(5 if self.long else 1)

    def count(self, short: int, long: int) -> int:
        """How many of something there are."""
        return long if self.long else short

    def of(self, scenario: str) -> random.Random:
        """The chance of one scenario, whichever others run."""
        return random.Random(f"{self.seed} {scenario}")


class Load:
    """Publishers and subscribers around a scenario: `with load: …`, then `load.account`."""

    def __init__(
        self,
        scenario: str,
        chaos: Chaos,
        site: Site,
        producers: Companion,
        crowd: Companion,
        folder: Path,
        told: Callable[[dict[str, object]], None],
    ) -> None:
        self.scenario = scenario
        self.chaos = chaos
        self.chance = chaos.of(scenario)
        self.site = site
        self.producers = producers
        self.crowd = crowd
        self.folder = folder
        self.told = told
        self.name = scenario.replace(" ", "-")
        self.durable = [f"ledger:{self.name}-{number}" for number in range(2)]
        self.window = [f"window:{self.name}-{number}" for number in range(2)]
        #: Durable as well, and nobody publishes there but the scenario.
        self.quiet: list[str] = []
        self.file = folder / "ledger.jsonl"
        self.options: dict[str, Any] = {}
        self.small: list[int] = []
        #: When each fault was over.
        self.since: list[float] = []
        self.records: list[Record] = []
        self._account: Account | None = None
        self._dispatched = 0

    @property
    def topics(self) -> list[str]:
        return [*self.durable, *self.quiet, *self.window]

    @property
    def account(self) -> Account:
        """How the two records agree, when all is over."""
        assert self._account is not None
        return self._account

    def published_by(self, **options: Any) -> Load:
        """Change what the publishers do, before they begin."""
        self.options |= options
        return self

    def order(self, **options: Any) -> dict[str, Any]:
        """What publishers are told to do."""
        return {
            "ledger": str(self.file),
            "name": self.name,
            "durable": self.durable,
            "window": self.window,
            "servers": self.site.addresses,
            "api_key": self.site.key,
            "seed": self.chaos.seed,
            "pause": self.chaos.pause,
            **options,
        }

    # What a scenario does.

    def entries(self) -> list[Entry]:
        """What the publishers noted by now."""
        return entries(self.file)

    def flow(self, events: int = 60, *, seconds: float = 20.0) -> None:
        """Wait until so many more events were promised."""

        def promised() -> int:
            return sum(entry.outcome is Outcome.PROMISED for entry in self.entries())

        goal = promised() + events
        eventually(lambda: promised() >= goal, seconds=seconds)

    def dispatch(self, *, tasks: int, steps: int, pause: float) -> None:
        """Send tasks that publish on the durable topics in steps; all that they are to publish is promised."""
        self._dispatched += 1
        series = f"{self.name}.slow{self._dispatched}."
        self.producers.ask(
            "dispatch",
            ledger=str(self.file),
            topics=self.durable,
            series=series,
            tasks=tasks,
            steps=steps,
            pause=pause,
        )

    def begun_by(self, pids: Collection[int], *, step: int) -> bool:
        """Whether one of these processes is at a step of a task that was dispatched last."""
        return any(
            entry.pid in pids and entry.number == step and f".slow{self._dispatched}." in entry.series
            for entry in self.entries()
            if entry.outcome is Outcome.ATTEMPTED
        )

    def arrival_of(self, events: Iterable[tuple[str, str]], *, besides: Collection[int] = ()) -> int:
        """Wait until every client has these events, given by topic and key; returns how many did not arrive.

        It does not wait for clients that are named in `besides`.
        """
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for topic, key in events:
            wanted[topic].append(key)
        answer = self.crowd.ask("wait", wanted=wanted, besides=list(besides), seconds=ARRIVAL_SECONDS)
        lacking: int = answer["lacking"]
        return lacking

    def go_on(self, short: float, long: float) -> None:
        """Let some time pass under load, somewhat longer or shorter each time."""
        time.sleep(self.chaos.seconds(short, long) * self.chance.uniform(0.8, 1.2))

    def fault_over(self) -> None:
        """From now on everything has to come right again."""
        self.since.append(time.monotonic())

    # Its beginning and its end.

    def __enter__(self) -> Load:
        seed = self.chance.randrange(10**6)
        opened = self.crowd.ask(
            "open",
            clients=self.chaos.clients,
            addresses=self.site.addresses,
            topics=self.topics,
            seed=seed,
            small=self.small,
        )
        assert opened["done"], "the subscribers could not subscribe"
        self.producers.ask("start", **self.order(seed=seed, **self.options))
        self.flow(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = self.producers.ask("stop")
        if error is not None:
            self._closed()
            print(self.site.last_words())  # noqa: T201 - pytest shows it with the failure
            return
        assert stopped["failures"] == [], stopped["failures"]
        self._mark_the_end()
        due = {place for place, promise in self.promises().items() if promise.outcome is Outcome.PROMISED}
        self.arrival_of((topic, key) for topic, key in due if topic not in self.window or key == END)
        self.records = self._closed()
        found = self.promises()
        for place, promise in found.items():
            if promise.outcome is Outcome.PROMISED and place not in due:
                promise.outcome = Outcome.UNKNOWN  # by a task that ran when nobody listened any more
        self._account = compare(found, self.records, durable=[*self.durable, *self.quiet], since=self.since)
        if not self._account.holds:
            print(self.site.last_words())  # noqa: T201 - pytest shows it with the failure
        self.told({"scenario": self.scenario, "seed": self.chaos.seed, **msgspec.to_builtins(self._account)})

    def promises(self) -> dict[tuple[str, str], Promise]:
        """What became of each event, as far as the publishers know."""
        return promises(self.entries())

    def _mark_the_end(self) -> None:
        """Publish a last event to each topic, so that whoever misses the ones before finds out."""
        ledger = Ledger(self.file)
        for topic in self.topics:
            ledger.write(Outcome.ATTEMPTED, topic, "end", 1)
            body = {"channel": topic, "data": {"key": END}, "idempotency_key": END}

            def published(body: dict[str, Any] = body) -> dict[str, Any] | None:
                for address in self.site.addresses:
                    try:
                        answer = httpx.post(
                            f"http://{address}/api/publish", json=body, headers={"X-API-Key": self.site.key}, timeout=5
                        )
                        found: dict[str, Any] | None = answer.json().get("result")
                    except (httpx.HTTPError, ValueError):
                        continue
                    if found is not None:
                        return found
                return None

            place = eventually(published, seconds=ARRIVAL_SECONDS)
            assert place is not None
            ledger.write(Outcome.PROMISED, topic, "end", 1, offset=place["offset"], epoch=place["epoch"])
        ledger.close()

    def _closed(self) -> list[Record]:
        path = self.folder / "records.jsonl"
        self.crowd.ask("close", path=str(path))
        return read_records(path)

    @property
    def everybody(self) -> set[int]:
        """The clients."""
        return set(range(self.chaos.clients))

    def told_clients(self, topic: str) -> set[int]:
        """The clients that were told on a topic that they may have missed something."""
        return {record.client for record in self.records if record.kind is Kind.TOLD and record.topic == topic}
