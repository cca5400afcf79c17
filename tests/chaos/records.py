"""What subscribers noted, and its comparison with what publishers were promised."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from tests.chaos.ledger import Outcome, Promise

MOST_PROBLEMS = 12


class Kind(enum.StrEnum):
    """What a subscriber was told."""

    #: Subscribed for the first time, at a position.
    JOINED = "joined"
    #: Subscribed again, and given all it had missed after the position it had seen.
    RESUMED = "resumed"
    #: Subscribed again with `recovered: false`: what lies before the position given may have been missed.
    TOLD = "told"
    #: An event, as it happened.
    LIVE = "live"
    #: An event with the answer to a subscription.
    RECOVERED = "recovered"
    #: The server ended the subscription, with the code in `key`.
    UNSUBSCRIBED = "unsubscribed"
    #: A subscription was answered with an error, with the code in `key`.
    REFUSED = "refused"
    #: The connection ended.
    CLOSED = "closed"


EVENTS = frozenset({Kind.LIVE, Kind.RECOVERED})


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One note of one client. `at` is on the system's monotonic clock."""

    client: int
    kind: Kind
    topic: str = ""
    at: float = 0.0
    offset: int = 0
    epoch: str = ""
    key: str = ""


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines."""
    with Path(path).open("wb") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def read_records(path: Path) -> list[Record]:
    """Records from JSON lines."""
    decoder = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


class Account(msgspec.Struct):
    """How the two records agree. Events are counted once for each client that should have them."""

    clients: int
    promised: int
    delivered: int = 0
    doubled: int = 0
    lost: int = 0
    #: Rolled back or never published, and delivered.
    ghosts: int = 0
    #: Not after what came before.
    disordered: int = 0
    #: Delivered with the answer to a subscription, as they had been missed.
    recovered: int = 0
    #: Missed, by a client that was told so.
    excused: int = 0
    #: Clients that were told on a topic that they missed something.
    told: int = 0
    seconds_to_recover: float = 0.0
    slowest_seconds: float = 0.0
    problems: list[str] = []

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


class _Comparison:
    def __init__(
        self, promises: Mapping[tuple[str, str], Promise], records: Iterable[Record], durable: Collection[str]
    ) -> None:
        self.promises = promises
        self.durable = durable
        self.places: dict[tuple[str, str], tuple[str, int]] = {}
        self.by_client: defaultdict[tuple[int, str], list[Record]] = defaultdict(list)
        clients = set()
        for record in records:
            clients.add(record.client)
            if record.topic:
                self.by_client[record.client, record.topic].append(record)
        self.due = [promise for promise in promises.values() if promise.outcome is Outcome.PROMISED]
        self.account = Account(len(clients), len(self.due), problems=[])
        self.clients = sorted(clients)

    def problem(self, text: str) -> None:
        if len(self.account.problems) < MOST_PROBLEMS:
            self.account.problems.append(text)

    def run(self) -> Account:
        for promise in self.promises.values():
            if promise.offset:
                self.places[promise.topic, promise.key] = promise.epoch, promise.offset
        due: defaultdict[str, list[Promise]] = defaultdict(list)
        for promise in self.due:
            due[promise.topic].append(promise)
        for client in self.clients:
            for topic in {topic for topic, _ in self.promises}:
                records = self.by_client[client, topic]
                self._positions(client, topic, records)
                got = self._events(client, topic, records)
                self._missing(client, topic, records, got, due[topic])
        return self.account

    def _positions(self, client: int, topic: str, records: list[Record]) -> None:
        """Offsets have to follow one another from where the client joined, or was told to begin."""
        account, place = self.account, ("", 0)
        for record in records:
            who = f"client {client} on {topic}"
            if record.kind is Kind.JOINED:
                place = record.epoch, record.offset
            elif record.kind is Kind.TOLD:
                place = record.epoch, record.offset
                account.told += 1
                if topic in self.durable:
                    self.problem(f"{who} was told that it missed something of a durable topic: {record}")
            elif record.kind is Kind.RESUMED and record.epoch != place[0]:
                self.problem(f"{who} resumed in another epoch, {record.epoch}, than {place}, and was not told")
                place = record.epoch, record.offset
            elif record.kind in EVENTS:
                epoch, offset = place
                if record.epoch != epoch:
                    self.problem(f"{who} got {record.key} of another epoch, {record.epoch}, than {place}")
                elif record.offset <= offset:
                    account.disordered += 1
                    self.problem(f"{who} got {record.key} at {record.offset} after {offset}")
                elif record.offset != offset + 1:
                    self.problem(f"{who} got {record.key} at {record.offset} after {offset}: a hole")
                place = record.epoch, record.offset

    def _events(self, client: int, topic: str, records: list[Record]) -> set[str]:
        """Each event once, published, and in the order of its publisher."""
        account, got = self.account, set[str]()
        newest: dict[str, int] = {}
        for record in records:
            if record.kind not in EVENTS:
                continue
            who = f"client {client} on {topic}"
            account.recovered += record.kind is Kind.RECOVERED
            promise = self.promises.get((topic, record.key))
            if record.key in got:
                account.doubled += 1
                self.problem(f"{who} got {record.key} twice, at {record.offset} of {record.epoch} the second time")
                continue
            got.add(record.key)
            if promise is None or promise.outcome is Outcome.ROLLED_BACK:
                account.ghosts += 1
                self.problem(f"{who} got {record.key}, which was {'rolled back' if promise else 'never published'}")
                continue
            known = self.places.setdefault((topic, record.key), (record.epoch, record.offset))
            if known != (record.epoch, record.offset):
                self.problem(f"{who} got {record.key} at {record.offset} of {record.epoch}, others at {known}")
            if promise.outcome is not Outcome.PROMISED:
                continue
            account.delivered += 1
            account.slowest_seconds = max(account.slowest_seconds, round(record.at - promise.attempted_at, 3))
            if promise.ordered:
                if promise.number < newest.get(promise.series, 0):
                    account.disordered += 1
                    self.problem(f"{who} got {record.key} after {promise.series}-{newest[promise.series]}")
                newest[promise.series] = max(promise.number, newest.get(promise.series, 0))
        return got

    def _missing(self, client: int, topic: str, records: list[Record], got: set[str], due: list[Promise]) -> None:
        """What did not arrive was excused to this client, which no durable topic may do."""
        told = [record for record in records if record.kind is Kind.TOLD]
        for promise in due:
            if promise.key in got:
                continue
            place = self.places.get((topic, promise.key))
            if topic not in self.durable and any(_excuses(record, promise, place) for record in told):
                self.account.excused += 1
            else:
                self.account.lost += 1
                self.problem(f"client {client} never got {promise.key} of {topic}, promised at {place}")


def _excuses(told: Record, promise: Promise, place: tuple[str, int] | None) -> bool:
    """Whether a client that was told to begin anew at a position knows that it may lack an event."""
    if place is not None and place[0] == told.epoch:
        return place[1] <= told.offset
    return promise.attempted_at <= told.at


def compare(
    promises: Mapping[tuple[str, str], Promise],
    records: Iterable[Record],
    *,
    durable: Collection[str],
    since: Sequence[float] = (),
) -> Account:
    """Compare what was promised with what each client got on the same topics.

    `since` is when each fault was over: `seconds_to_recover` is how long it took at most from then until every client
    had an event of every topic again that was published after it.
    """
    records = list(records)
    account = _Comparison(promises, records, durable).run()
    account.seconds_to_recover = max((_seconds_to_recover(promises, records, over) for over in since), default=0.0)
    return account


def _seconds_to_recover(promises: Mapping[tuple[str, str], Promise], records: Iterable[Record], since: float) -> float:
    first: dict[tuple[int, str], float] = {}
    for record in records:
        if record.kind in EVENTS and record.at >= since:
            promise = promises.get((record.topic, record.key))
            if promise is not None and promise.attempted_at >= since:
                first.setdefault((record.client, record.topic), record.at)
    return round(max(first.values(), default=since) - since, 3)
