"""A topic as it should be, clients that remember what they were told of it, and layers that do not carry everything.

The reference is a plain list of numbers for each run of a topic's offsets.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from notifications.delivery import codes
from notifications.delivery.codes import Code
from notifications.delivery.frames import Framing, unframed
from notifications.delivery.identity import ANONYMOUS
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.protocols.schema import Publication, Reply, SubscribeResult
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.events import Cursor
from notifications.events.layers import InProcessChannelLayer
from notifications.events.messages import EVENT
from notifications.events.redis_layer import RedisChannelLayer
from notifications.events.retention import Kind
from notifications.events.topics import resolve
from tests.delivery.watched import replies

#: How many events a window keeps, and how many are recovered at most, also from a topic that keeps everything.
SIZE, MAX_HISTORY = 5, 12


# The layers.


class Fates:
    """What becomes of announcements ("lost", "late", "twice"), by the process's channel and the number in the event."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, int], str] = {}
        self.late: list[tuple[str, dict[str, Any]]] = []
        #: Those that there were.
        self.seen: set[str] = set()

    def apply(self, channel: str, message: dict[str, Any]) -> list[dict[str, Any]]:
        """What a process gets for a message."""
        if message["type"] != EVENT:
            return [message]
        fate = self.of.pop((channel, msgspec.json.decode(message["event"])["data"]), "")
        self.seen.add(fate)
        if fate == "late":
            self.late.append((channel, message))
        return {"": [message], "twice": [message, message]}.get(fate, [])


fates = Fates()


class WaywardMemoryLayer(InProcessChannelLayer):
    """Brings what the fates leave."""

    async def receive(self, channel: str) -> dict[str, Any]:
        while True:
            found = fates.apply(channel, await super().receive(channel))
            for again in found[1:]:
                self.deliver(channel, again)
            if found:
                return found[0]


class WaywardRedisLayer(RedisChannelLayer):
    """Brings what the fates leave."""

    async def receive_by(self, channel: str, receiver: Callable[[dict[str, Any]], None]) -> None:
        def receive(message: dict[str, Any]) -> None:
            for found in fates.apply(channel, message):
                receiver(found)

        await super().receive_by(channel, receive)


# The reference.


class State(NamedTuple):
    """A topic's log at one moment: what comes after the offset `oldest` is kept. The epoch is None until it is seen."""

    epoch: str | None
    oldest: int
    offset: int

    def reaches(self, since: Cursor) -> bool:
        """Whether who has all up to a cursor can get the rest."""
        return (
            since.epoch in ("", self.epoch)
            and self.oldest <= since.offset <= self.offset
            and self.offset - since.offset <= MAX_HISTORY
        )


class Reference:
    """A topic as it should be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic = resolve(name)
        self.kept = self.topic.retention.kept
        self.durable = self.topic.retention.kind is Kind.DURABLE
        #: The numbers of the current run's events; that at index 0 has the offset 1.
        self.numbers: list[int] = []
        self.runs: dict[str, list[int]] = {}
        #: How the log was since things were quiet, and is.
        self.states = [State(None, 0, 0)]
        #: Whether something is under way that ends in the next state, and the events that it will have appended.
        self.busy = False
        self.under_way: list[int] = []
        #: What a process was not told of once and in time since things were quiet.
        self.withheld: defaultdict[str, set[int]] = defaultdict(set)

    def append(self, numbers: list[int]) -> None:
        self.numbers += numbers
        _, oldest, offset = self.states[-1]
        offset += len(numbers)
        oldest = oldest if self.durable else max(oldest, offset - SIZE)
        self.states.append(self.states[-1]._replace(oldest=oldest, offset=offset))

    def prune(self) -> None:
        state = self.states[-1]
        self.states.append(state._replace(oldest=max(state.oldest, state.offset - SIZE)))

    def remove(self) -> None:
        self.states.append(self.states[-1]._replace(oldest=self.states[-1].offset))

    def begin_epoch(self) -> None:
        """The kept events go on as those of a new run."""
        self.numbers = self.numbers.copy()
        self.states.append(self.states[-1]._replace(epoch=None))

    def destroy(self) -> None:
        self.numbers = []
        self.states.append(State(None, 0, 0))

    def name_epoch(self, epoch: str) -> None:
        """The epoch of the current run was seen."""
        if self.states[-1].epoch is None:
            assert epoch not in self.runs, f"{self.name} began the epoch {epoch} again"
            self.runs[epoch] = self.numbers
            self.states[-1] = self.states[-1]._replace(epoch=epoch)
        assert epoch == self.states[-1].epoch

    def is_harmed(self, process: str) -> bool:
        """Whether subscribers of a process may have missed what its log did not have any more."""
        epochs = {state.epoch for state in self.states}
        oldest = max(state.oldest for state in self.states)
        return len(epochs) > 1 or not self.withheld[process].isdisjoint(self.numbers[:oldest])


class Answered(NamedTuple):
    """What the hub said to who subscribed, and how many states there had been since things were quiet."""

    since: Cursor | None
    result: SubscribeResult
    states: int


class Received(NamedTuple):
    offset: int
    number: int
    pushed: bool


class Span:
    """An unbroken subscription: where it began, and what has come since things were quiet."""

    def __init__(self, reference: Reference, position: Cursor, connection: Connection) -> None:
        self.reference = reference
        self.epoch = position.epoch
        #: Up to where it was checked, and where it is.
        self.checked = self.offset = position.offset
        self.client = connection.session.id
        self.process = connection.board.channel
        self.received: list[Received] = []
        #: For a topic without offsets: what of the list has to come.
        self.first = len(reference.numbers) + len(reference.under_way)
        self.last: int | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.offset, self.epoch)

    def take(self, publication: Publication, *, pushed: bool) -> None:
        number = msgspec.json.decode(publication.data)
        if self.reference.kept:
            assert publication.offset > self.offset, f"{number} at {publication.offset} comes after {self.cursor}"
            self.offset = publication.offset
        self.received.append(Received(publication.offset, number, pushed))


# The clients.


class Connection:
    """A transport, and the session behind it."""

    framing: Framing = staticmethod(unframed)
    congested = False

    def __init__(self, client: Client, board: Switchboard) -> None:
        self.client = client
        self.board = board
        self.over = False
        self.session = Session(board, CENTRIFUGE, self, ANONYMOUS)
        self.session.opened()

    def write(self, frames: list[bytes]) -> None:
        try:
            assert not self.over, "something is written to a closed transport"
            for frame in frames:
                for reply in replies(frame, binary=False):
                    self.client.take(reply)
        except Exception as error:  # whatever the hub makes of a transport that fails, the test has to know
            self.client.violations.append(error)
            raise

    def pending(self) -> int:
        return 0

    def ping(self) -> None:
        """Nobody listens."""

    def close(self, code: Code) -> None:
        if code is not codes.SHUTDOWN:
            self.client.violations.append(AssertionError(f"closed with {code}"))
        self.over = True
        self.client.lost()


class Client:
    """Remembers where it is on each topic, whatever becomes of its connections."""

    def __init__(self, references: dict[str, Reference], violations: list[Exception]) -> None:
        self.references = references
        self.violations = violations
        self.connection: Connection | None = None
        self.cursors: dict[str, Cursor] = {}
        self.spans: dict[str, Span] = {}
        self.asked: dict[int, tuple[str, str, Cursor | None]] = {}
        #: Topics on which it was told that it has missed events, and did not come back yet.
        self.turned_away: set[str] = set()
        #: Since things were quiet: what ended, what was answered, and where and by whom it was turned away.
        self.ended: list[Span] = []
        self.answers: list[tuple[Span, Answered]] = []
        self.told: list[tuple[Reference, str]] = []
        self._ids = itertools.count(1)

    def connect(self, board: Switchboard) -> None:
        self.connection = Connection(self, board)
        self._send("connect", "", None)

    def _send(self, method: str, topic: str, since: Cursor | None, **request: Any) -> None:
        assert self.connection is not None
        number = next(self._ids)
        self.asked[number] = method, topic, since
        self.connection.session.feed(msgspec.json.encode({"id": number, method: request}).decode())

    def asks(self, method: str, topic: str) -> bool:
        return any(asked[:2] == (method, topic) for asked in self.asked.values())

    def subscribe(self, topic: str, since: Cursor | None) -> None:
        self.turned_away.discard(topic)
        request: dict[str, Any] = {"channel": topic}
        if since is not None:
            request |= {"recover": True, "offset": since.offset, "epoch": since.epoch}
        self._send("subscribe", topic, since, **request)

    def unsubscribe(self, topic: str) -> None:
        self._end(topic)
        self._send("unsubscribe", topic, None, channel=topic)

    def drop(self) -> None:
        """Lose the connection."""
        if self.connection is not None:
            self.connection.over = True
            self.connection.session.closed()
            self.lost()

    def lost(self) -> None:
        self.connection = None
        self.asked.clear()
        self.turned_away.clear()
        for topic in list(self.spans):
            self._end(topic)

    def _end(self, topic: str) -> None:
        span = self.spans.pop(topic, None)
        if span is not None:
            span.last = len(span.reference.numbers)
            self.cursors[topic] = span.cursor
            self.ended.append(span)

    def take(self, reply: Reply) -> None:
        """What the hub says."""
        if reply.push is None:
            method, topic, since = self.asked.pop(reply.id)
            assert reply.error is None, f"{method} {topic} {since}: {reply.error}"
            if method == "subscribe" and reply.subscribe is not None:
                self._subscribed(self.references[topic], since, reply.subscribe)
            return
        topic, span = reply.push.channel, self.spans.get(reply.push.channel)
        if reply.push.unsubscribe is not None:
            assert reply.push.unsubscribe.code == codes.UNSUBSCRIBED_INSUFFICIENT_STATE.code
            assert span is not None or self.asks("unsubscribe", topic)
            if span is not None:
                self.told.append((span.reference, span.process))
                self.turned_away.add(topic)
            self._end(topic)
        elif reply.push.pub is not None:
            assert span is not None or self.asks("unsubscribe", topic), f"not subscribed: {reply.push}"
            if span is not None:
                span.take(reply.push.pub, pushed=True)

    def _subscribed(self, reference: Reference, since: Cursor | None, result: SubscribeResult) -> None:
        assert self.connection is not None
        assert reference.name not in self.spans
        span = Span(reference, Cursor(result.offset, result.epoch), self.connection)
        self.spans[reference.name] = span
        self.answers.append((span, Answered(since, result, len(reference.states) + reference.busy)))
        for publication in result.publications:
            span.take(publication, pushed=False)
