"""The rows of the table: which two figures are compared, and what is wanted of their ratio."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Per measurement and server, one set of values per round.
Rounds = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]


# Two measurements of the same server differ by a factor of 1.5 on a shared machine; less than that is no growth.
FLAT = 1 / 1.5


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a figure comes from: a measurement, a turn of it, and one of its values."""

    measure: str
    turn: str
    value: str

    def of(self, rounds: Rounds) -> list[float | None]:
        """The figure in every round; None where that turn was not measured."""
        found = rounds.get(self.measure, {}).get(self.turn, ())
        return [values.get(self.value) for values in found]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    `ratio` is how many times better the hub is, taken within each round: `against` / `hub` for costs, the other way
    round where more is better. `at_least` is a target for the ratio, `at_most` one for the hub's own figure.
    """

    name: str
    title: str
    unit: str
    hub: Figure
    against: Figure | None = None
    peer: str = ""
    more_is_better: bool = False
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None
    scale: float = 1.0
    meaning: str = ""

    @property
    def measures(self) -> set[str]:
        """The measurements that it needs."""
        return {self.hub.measure} | ({self.against.measure} if self.against else set())

    def figures(self, rounds: Rounds) -> Spread | None:
        """The hub's figure, in the row's unit."""
        return Spread.over([value * self.scale for value in self.hub.of(rounds) if value is not None])

    def peers_figures(self, rounds: Rounds) -> Spread | None:
        """The figure that it is compared with."""
        if self.against is None:
            return None
        return Spread.over([value * self.scale for value in self.against.of(rounds) if value is not None])

    def ratios(self, rounds: Rounds) -> Spread | None:
        """How many times better the hub is, over the rounds in which both were measured."""
        if self.against is None:
            return None
        pairs = zip(self.hub.of(rounds), self.against.of(rounds), strict=False)
        return Spread.over(
            [
                hub / other if self.more_is_better else other / hub
                for hub, other in pairs
                if hub is not None and other is not None and hub > 0 and other > 0
            ]
        )

    def verdict(self, rounds: Rounds) -> str:
        """`met`, `aim met`, `missed`, `reported` for rows without a target, or `not measured`."""
        if self.at_most is not None:
            own = self.figures(rounds)
            return "not measured" if own is None else "met" if own.median <= self.at_most else "missed"
        ratios = self.ratios(rounds)
        if ratios is None:
            return "not measured"
        if self.aim is not None and ratios.median >= self.aim:
            return "aim met"
        if self.at_least is None:
            return "reported"
        return "met" if ratios.median >= self.at_least else "missed"

    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g} {self.unit}"
        if self.at_least == FLAT:
            return "flat (0.67 × or more)"
        words = f"{self.at_least:g} ×" if self.at_least is not None else "reported"
        return f"{words} (aim {self.aim:g} ×)" if self.aim is not None else words


ROWS: tuple[Row, ...] = (
    Row(
        name="cpu-w8",
        title="CPU per delivery, 1,000 sockets, 8 events in flight",
        unit="µs",
        hub=Figure("fanout", "hub", "w8_cpu_us"),
        against=Figure("fanout", "tutorial", "w8_cpu_us"),
        peer="Channels tutorial",
        at_least=150,
        aim=250,
        meaning="Everything that the server process spends, from taking the publication to the last write, divided by "
        "the messages that arrived at the receivers.",
    ),
    Row(
        name="cpu-w1",
        title="CPU per delivery, 1,000 sockets, one event at a time",
        unit="µs",
        hub=Figure("fanout", "hub", "w1_cpu_us"),
        against=Figure("fanout", "tutorial", "w1_cpu_us"),
        peer="Channels tutorial",
        at_least=40,
        meaning="The same without anything to join: each event is one write per socket, of which the kernel's part "
        "cannot be avoided by any server.",
    ),
    Row(
        name="rate-c",
        title="Deliveries per second, 1,000 sockets, 8 in flight",
        unit="k/s",
        hub=Figure("fanout", "hub", "w8_rate"),
        against=Figure("fanout", "c", "w8_rate"),
        peer="C, epoll",
        more_is_better=True,
        at_least=0.6,
        aim=0.9,
        scale=1e-3,
        meaning="Against a server in C that checks nothing, keeps nothing and joins the frames of a turn of its loop.",
    ),
    Row(
        name="cpu-c",
        title="CPU per delivery, 1,000 sockets, 8 in flight",
        unit="µs",
        hub=Figure("fanout", "hub", "w8_cpu_us"),
        against=Figure("fanout", "c", "w8_cpu_us"),
        peer="C, epoll",
        meaning="The same as CPU: the C server is as fast as the load client, which bounds its rate and not its CPU.",
    ),
    Row(
        name="rate-nchan",
        title="Deliveries per second, 1,000 sockets, 8 in flight",
        unit="k/s",
        hub=Figure("fanout", "hub", "w8_rate"),
        against=Figure("fanout", "nchan", "w8_rate"),
        peer="nginx with nchan",
        more_is_better=True,
        at_least=2.5,
        scale=1e-3,
        meaning="nchan keeps messages in its shared memory and is published to over 8 kept-alive HTTP connections.",
    ),
    Row(
        name="rate-nats",
        title="Deliveries per second, 1,000 sockets, 8 in flight",
        unit="k/s",
        hub=Figure("fanout", "hub", "w8_rate"),
        against=Figure("fanout", "nats", "w8_rate"),
        peer="nats-server",
        more_is_better=True,
        at_least=1.0,
        aim=2.0,
        scale=1e-3,
        meaning="nats-server keeps nothing; its subscribers use WebSocket, its publisher TCP.",
    ),
    Row(
        name="last-1000",
        title="Time to the last receiver, one event at a time, 1,000 sockets",
        unit="ms",
        hub=Figure("fanout", "hub", "last_us"),
        against=Figure("fanout", "nchan", "last_us"),
        peer="nginx with nchan",
        at_least=1.0,
        scale=1e-3,
        meaning="From the moment at which the event was meant to be sent until the last socket has it: median over the "
        "events, each sent 5 ms after the one before was complete. Before it writes to anybody the hub has its event "
        "appended by Redis, for which nothing is in a cache any more after such a pause: 0.3 to 0.5 ms that nchan does "
        "not spend, which keeps its messages in the process. The thousand writes take the hub less time than nchan.",
    ),
    Row(
        name="last-10000",
        title="Time to the last receiver, one event at a time, 10,000 sockets",
        unit="ms",
        hub=Figure("many", "hub", "last_us"),
        against=Figure("many", "nchan", "last_us"),
        peer="nginx with nchan",
        at_least=1.0,
        scale=1e-3,
        meaning="As above.",
    ),
    Row(
        name="one-to-one",
        title="Messages per second, 1,000 topics with one subscriber each, 64 in flight",
        unit="k/s",
        hub=Figure("one_to_one", "hub", "rate"),
        against=Figure("one_to_one", "nchan", "rate"),
        peer="nginx with nchan",
        more_is_better=True,
        aim=1.0,
        scale=1e-3,
        meaning="The hub's messages go through Redis, which gives them their offsets and keeps them; nchan's do not "
        "leave the process.",
    ),
    Row(
        name="memory",
        title="Memory per idle session, of 10,000",
        unit="kB",
        hub=Figure("many", "hub", "bytes_per_session"),
        against=Figure("many", "nchan", "bytes_per_session"),
        peer="nginx with nchan",
        at_most=8.0,
        scale=1e-3,
        meaning="Growth of the resident set of a new server that has served 100 connections before. Each session is "
        "another user's, authenticated and subscribed with recovery.",
    ),
    Row(
        name="memory-tutorial",
        title="Memory per idle session",
        unit="kB",
        hub=Figure("many", "hub", "bytes_per_session"),
        against=Figure("many", "tutorial", "bytes_per_session"),
        peer="Channels tutorial",
        scale=1e-3,
        meaning="The tutorial's consumer with 1,000 sockets.",
    ),
    Row(
        name="connect",
        title="CPU per connect, by token",
        unit="µs",
        hub=Figure("connects", "hub", "cpu_us"),
        against=Figure("connects", "tutorial", "cpu_us"),
        peer="Channels tutorial, session cookie",
        at_least=5,
        meaning="Handshake, connect command with a signed token, subscribe with recovery from the position of the "
        "topic; against handshake, session, user and `group_add`. 100 connections are being opened at any time.",
    ),
    Row(
        name="connect-cookie",
        title="CPU per connect, by the cookies of a browser that was connected before",
        unit="µs",
        hub=Figure("connects", "hub-again", "cpu_us"),
        against=Figure("connects", "tutorial", "cpu_us"),
        peer="Channels tutorial, session cookie",
        at_least=5,
        meaning="The same with the session cookie and with what the answer to an earlier handshake set: what a browser "
        "sends when it reloads or reconnects.",
    ),
    Row(
        name="connect-first",
        title="CPU per connect, by session cookie alone",
        unit="µs",
        hub=Figure("connects", "hub-cookie", "cpu_us"),
        against=Figure("connects", "tutorial", "cpu_us"),
        peer="Channels tutorial, session cookie",
        meaning="A browser's first connection after signing in, for which both look up session and user.",
    ),
    Row(
        name="connect-visitor",
        title="CPU per connect, by token",
        unit="µs",
        hub=Figure("connects", "hub", "cpu_us"),
        against=Figure("connects", "tutorial-visitor", "cpu_us"),
        peer="Channels tutorial, not signed in",
        meaning="The tutorial's consumer without anybody to look up.",
    ),
    Row(
        name="call",
        title="publish() from a synchronous caller: CPU in the caller, per event",
        unit="µs",
        hub=Figure("calls", "hub", "cpu_us"),
        against=Figure("calls", "tutorial", "cpu_us"),
        peer="async_to_sync(group_send)",
        at_least=15,
        meaning="In a process of its own without an event loop, as in a Celery task. The hub's event is kept and has "
        "an offset when the call returns.",
    ),
    Row(
        name="request",
        title="POST /api/publish: CPU per request",
        unit="µs",
        hub=Figure("requests", "hub", "cpu_us"),
        against=Figure("requests", "bare-view", "cpu_us"),
        peer="bare asynchronous view",
        at_least=1.0,
        meaning="Over 8 kept-alive connections; against a view of the same project, in the same process, that answers "
        "JSON and does nothing else. Redis' own CPU is not in it.",
    ),
    Row(
        name="steady",
        title="Publish to receive at a steady 50,000 deliveries per second, p99",
        unit="ms",
        hub=Figure("steady", "hub", "p99_us"),
        against=Figure("steady", "nchan", "p99_us"),
        peer="nginx with nchan",
        at_most=20.0,
        scale=1e-3,
        meaning="Open loop: 50 events per second to 1,000 sockets, sent at their time whether or not the server keeps "
        "up; over all deliveries, from the intended time of sending.",
    ),
    Row(
        name="processes",
        title="Deliveries per second of two server processes",
        unit="k/s",
        hub=Figure("processes", "two-processes", "rate"),
        against=Figure("processes", "hub", "rate"),
        peer="one process",
        more_is_better=True,
        scale=1e-3,
        meaning="The 1,000 sockets shared by two processes of one hub. On a machine with two cores the second process "
        "shares its core with the load client and Redis.",
    ),
    Row(
        name="growth-sockets",
        title="CPU per delivery with 10,000 sockets",
        unit="µs",
        hub=Figure("many", "hub", "w8_cpu_us"),
        against=Figure("few", "hub", "w8_cpu_us"),
        peer="100 sockets",
        at_least=FLAT,
        meaning="8 events in flight. 1 is flat; less than 1.5 times more counts as flat, which is how much two "
        "measurements of the same differ.",
    ),
    Row(
        name="growth-sockets-c",
        title="CPU per delivery of the C server with 10,000 sockets, for comparison",
        unit="µs",
        hub=Figure("many", "c", "w8_cpu_us"),
        against=Figure("few", "c", "w8_cpu_us"),
        peer="100 sockets",
        meaning="What the kernel's part of a delivery grows by, with sockets that no longer fit the caches.",
    ),
    Row(
        name="growth-others",
        title="CPU per publication to 10 subscribers, beside 10,000 of another topic",
        unit="µs",
        hub=Figure("many", "hub", "publish_beside_us"),
        against=Figure("many", "hub", "publish_alone_us"),
        peer="without them",
        at_least=FLAT,
        meaning="A publication must not cost more because others have many subscribers.",
    ),
    Row(
        name="growth-topics",
        title="CPU per delivery on ten live topics, among 100,000",
        unit="µs",
        hub=Figure("topics", "hub", "among_many_us"),
        against=Figure("topics", "hub", "ten_us"),
        peer="ten topics only",
        at_least=FLAT,
        meaning="The same process before and after it published to so many other topics (10,000 with `--quick`).",
    ),
    Row(
        name="growth-stalled",
        title="Time to the last of 1,000 receivers, beside ten that stopped reading",
        unit="ms",
        hub=Figure("stalled", "hub", "beside_last_us"),
        against=Figure("stalled", "hub", "alone_last_us"),
        peer="without them",
        at_least=FLAT,
        scale=1e-3,
        meaning="The same sockets with and without the ten, in turns. Before each turn the ten are sent more than the "
        "kernel takes for them, so that the hub holds events for each of them and is not yet to disconnect them.",
    ),
)


def by_name(names: Sequence[str]) -> list[Row]:
    """The rows of these names, all of them for none. Raises KeyError for an unknown one."""
    known = {row.name: row for row in ROWS}
    return [known[name] for name in names] if names else list(ROWS)


def figure(value: float) -> str:
    """A number with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.2g}"


def spread(values: Spread | None, unit: str = "") -> str:
    """`median (least-most)`."""
    if values is None:
        return "–"
    tail = f" {unit}" if unit else ""
    if values.least == values.most:
        return f"{figure(values.median)}{tail}"
    return f"{figure(values.median)}{tail} ({figure(values.least)}–{figure(values.most)})"


def as_json(row: Row, rounds: Rounds) -> dict[str, Any]:
    """A row's outcome, for the file of results."""

    def flat(values: Spread | None) -> dict[str, float] | None:
        return None if values is None else {"median": values.median, "min": values.least, "max": values.most}

    return {
        "row": row.name,
        "unit": row.unit,
        "hub": flat(row.figures(rounds)),
        "against": row.peer,
        "peer": flat(row.peers_figures(rounds)),
        "ratio": flat(row.ratios(rounds)),
        "target": row.target(),
        "verdict": row.verdict(rounds),
    }
