"""Clients that subscribe and then read nothing, so that the hub has to hold what is sent to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.bench.loadclient import BenchError
from tests.bench.peers import Hub, new_label
from tests.server.wire import TEXT, Peer, frame, request

FILLER_BYTES = 50_000
# What the two ends of a connection take before anything is left to the hub is less than so much.
MOST_FILLERS = 200
RECEIVE_BUFFER = 4_096
WRITTEN_SECONDS = 10.0
# TCP_ESTABLISHED of Linux.
ESTABLISHED = 1


class StalledClients:
    """So many subscribers of a topic, connected and congested within `with`.

    They also subscribe to a topic of their own, on which they are sent as much as the kernel takes, and a little more:
    the hub holds some 100 kB for each, and everything that comes after.
    """

    def __init__(self, server: Hub, topic: str, count: int) -> None:
        self.server = server
        self.topic = topic
        self.filler = f"bench:{new_label()}-filler"
        self.count = count
        self._peers: list[Peer] = []
        self._gone_before = 0.0
        self._client = httpx.Client(base_url=f"http://{server.address}", timeout=10)

    def __enter__(self) -> Self:
        self._gone_before = self._disconnected()
        try:
            for number in range(self.count):
                self._peers.append(self._subscribed(self.server.users[-1 - number]))
            self._fill()
        except OSError as error:
            self._close()
            raise BenchError(f"clients that do not read were not served: {error!r}") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and (gone := self._disconnected() - self._gone_before):
                raise BenchError(f"{gone:.0f} of {self.count} clients that do not read were disconnected too early")
        finally:
            self._close()

    def _subscribed(self, user: str) -> Peer:
        peer = Peer(self.server.port, receive_buffer=RECEIVE_BUFFER)
        peer.send(request("/connection/websocket", f"Origin: http://{self.server.address}"))
        peer.response()
        commands = self.server.preamble(self.server.token(user), self.topic, {})
        peer.send(frame(TEXT, f'{commands}\n{{"id":3,"subscribe":{{"channel":"{self.filler}"}}}}'.encode()))
        answered = 0
        while answered < 2:
            answered += peer.text().count('"subscribe":{')
        return peer

    def _fill(self) -> None:
        """Publish until no connection takes more. Raises BenchError when that does not come about."""
        before: list[int] = []
        for _ in range(MOST_FILLERS):
            self._publish_filler()
            unsent = self._unsent()
            if unsent == before:
                self._publish_filler()
                return
            before = unsent
        raise BenchError(f"clients that do not read still took events: {before} bytes are on their way")

    def _publish_filler(self) -> None:
        """Publish to the clients' own topic, and wait until the hub has written the event to them."""
        expected = self._metric("hub_delivered_total") + self.count
        self.server.api("publish", channel=self.filler, data="x" * FILLER_BYTES)
        deadline = time.monotonic() + WRITTEN_SECONDS
        while self._metric("hub_delivered_total") < expected:
            if time.monotonic() > deadline:
                raise BenchError("clients that do not read were sent nothing")

    def _unsent(self) -> list[int]:
        """Bytes that the kernel has of the server's for each client."""
        found = _send_queues(self.server.port)
        return [found.get(peer.socket.getsockname()[1], 0) for peer in self._peers]

    def _disconnected(self) -> float:
        """How many clients the hub has disconnected as slow so far."""
        return self._metric("hub_disconnects_total", '"3008"')

    def _metric(self, metric: str, label: str = "") -> float:
        """The sum of a metric over its labels, or over those that have this value."""
        lines = self._client.get("/metrics").text.splitlines()
        found = (line.split() for line in lines if line.startswith(metric + "{"))
        return sum(float(value) for name, value in found if label in name)

    def _close(self) -> None:
        self._client.close()
        for peer in self._peers:
            peer.vanish()


def _send_queues(port: int) -> Mapping[int, int]:
    """Of the established connections to a port of this machine, the bytes not yet received, by the client's port."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if int(local.rpartition(":")[2], 16) == port and int(state, 16) == ESTABLISHED:
            found[int(remote.rpartition(":")[2], 16)] = int(queues.partition(":")[0], 16)
    return found
