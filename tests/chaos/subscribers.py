"""A process of many subscribers that come back whatever happens, and note all they are told.

It takes commands as lines of JSON, `{"do": name, …}`, and answers each with a line of JSON. The subscribers speak the
Centrifuge protocol as its SDKs do: they reconnect with a backoff, and recover from the last position they have seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket as sockets
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.chaos.records import Kind, Record, write_records

ANSWER_SECONDS = 5.0
OPEN_SECONDS = 3.0
LONGEST_BACKOFF = 1.0
#: How long a client waits for a ping beyond the time that the server names.
PING_DELAY = 5.0


class Place:
    """How far a client has got on a topic."""

    def __init__(self) -> None:
        self.known = False
        self.subscribed = False
        self.offset = 0
        self.epoch = ""


class Client:
    """One subscriber."""

    def __init__(
        self, number: int, addresses: list[str], topics: list[str], chance: random.Random, *, small: bool
    ) -> None:
        self.number = number
        self.addresses = addresses
        self.chance = chance
        self.small = small
        self.places = {topic: Place() for topic in topics}
        self.keys: defaultdict[str, set[str]] = defaultdict(set)
        self.records: list[Record] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.socket: ClientConnection | None = None
        self.changed: Callable[[], None] = lambda: None
        self._ids = count(1)
        self._asked: dict[int, str] = {}

    @property
    def subscribed(self) -> bool:
        return all(place.subscribed for place in self.places.values())

    def _note(self, kind: Kind, topic: str = "", *, offset: int = 0, epoch: str = "", key: str = "") -> None:
        self.records.append(Record(self.number, kind, topic, time.monotonic(), offset, epoch, key))

    async def run(self) -> None:
        """Connect, and come back each time."""
        attempt = 0
        while True:
            address = self.chance.choice(self.addresses)
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    opened = await self._opened(address)
                try:
                    self.socket = opened
                    await self._serve(opened)
                finally:
                    opened.transport.abort()
            except (OSError, WebSocketException, TimeoutError):
                pass
            finally:
                self.socket = None
            attempt = 0 if any(place.subscribed for place in self.places.values()) else attempt + 1
            for place in self.places.values():
                place.subscribed = False
            self._note(Kind.CLOSED)
            await asyncio.sleep(self.chance.uniform(0, min(LONGEST_BACKOFF, 0.05 * 2**attempt)))

    async def _opened(self, address: str) -> ClientConnection:
        host, _, port = address.partition(":")
        options: dict[str, Any] = {}
        if self.small:  # what it does not read soon waits at the server
            plain = sockets.socket()
            plain.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8_192)
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
            options["sock"] = plain
        return await connect(
            f"ws://{address}/connection/websocket", compression=None, max_size=None, ping_interval=None, **options
        )

    async def _serve(self, socket: ClientConnection) -> None:
        self._asked.clear()
        await socket.send(json.dumps({"id": next(self._ids), "connect": {}}))
        patience = ANSWER_SECONDS
        while True:
            await self.reading.wait()
            async with asyncio.timeout(patience):
                frame = await socket.recv()
            for line in str(frame).strip("\n").split("\n"):
                message = json.loads(line)
                if not message:
                    await socket.send("{}")
                elif "push" in message:
                    await self._pushed(socket, message["push"])
                elif "connect" in message:
                    patience = message["connect"].get("ping", 25) + PING_DELAY
                    for topic in self.places:
                        await self._subscribe(socket, topic)
                elif message.get("id") in self._asked:
                    await self._answered(socket, self._asked.pop(message["id"]), message)
                else:
                    raise OSError(f"refused: {message}")
            self.changed()

    async def _subscribe(self, socket: ClientConnection, topic: str) -> None:
        place, number = self.places[topic], next(self._ids)
        self._asked[number] = topic
        request: dict[str, Any] = {"channel": topic, "positioned": True, "recoverable": True}
        if place.known:
            request |= {"recover": True, "offset": place.offset, "epoch": place.epoch}
        await socket.send(json.dumps({"id": number, "subscribe": request}))

    async def _answered(self, socket: ClientConnection, topic: str, message: dict[str, Any]) -> None:
        place = self.places[topic]
        if (error := message.get("error")) is not None:
            self._note(Kind.REFUSED, topic, key=str(error["code"]))
            if not error.get("temporary"):
                raise OSError(f"refused: {message}")
            self._later(socket, topic)
            return
        result = message["subscribe"]
        offset, epoch = result.get("offset", 0), result.get("epoch", "")
        kind = Kind.JOINED if not place.known else Kind.RESUMED if result.get("recovered") else Kind.TOLD
        self._note(kind, topic, offset=offset, epoch=epoch)
        place.known = place.subscribed = True
        # Of what is recovered, the answer has the position before it; the client counts on from there.
        place.offset, place.epoch = offset, epoch
        for publication in result.get("publications", []):
            self._got(topic, publication, Kind.RECOVERED)

    def _later(self, socket: ClientConnection, topic: str) -> None:
        async def again() -> None:
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))
            if self.socket is socket:
                try:
                    await self._subscribe(socket, topic)
                except WebSocketException:
                    return  # the client comes back

        task = asyncio.get_running_loop().create_task(again())
        _beside.add(task)
        task.add_done_callback(_beside.discard)

    async def _pushed(self, socket: ClientConnection, push: dict[str, Any]) -> None:
        topic = push.get("channel", "")
        if (publication := push.get("pub")) is not None:
            self._got(topic, publication, Kind.LIVE)
        elif (ended := push.get("unsubscribe")) is not None:
            self._note(Kind.UNSUBSCRIBED, topic, key=str(ended.get("code")))
            self.places[topic].subscribed = False
            await self._subscribe(socket, topic)
        elif "disconnect" in push:
            raise OSError(f"told to go: {push}")

    def _got(self, topic: str, publication: dict[str, Any], kind: Kind) -> None:
        place, key = self.places[topic], publication["data"]["key"]
        place.offset = publication.get("offset", 0)
        place.epoch = publication.get("epoch") or place.epoch
        self.keys[topic].add(key)
        self._note(kind, topic, offset=place.offset, epoch=place.epoch, key=key)


_beside: set[asyncio.Task[None]] = set()


class Crowd:
    """All subscribers of one scenario."""

    def __init__(self, *, clients: int, addresses: list[str], topics: list[str], seed: int, small: list[int]) -> None:
        self.chance = random.Random(seed)
        self.clients = [
            Client(number, addresses, topics, random.Random(seed * 1_000 + number), small=number in small)
            for number in range(clients)
        ]
        self._changed = asyncio.Event()
        for client in self.clients:
            client.changed = self._changed.set
        loop = asyncio.get_running_loop()
        self._running = [loop.create_task(client.run()) for client in self.clients]
        self._dropping: asyncio.Task[None] | None = None

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition is true; False when it does not become so in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def lacking(self, wanted: dict[str, list[str]], besides: list[int]) -> int:
        """How many of the wanted events have not arrived, counted for each client but some."""
        return sum(
            len(keys) - len(client.keys[topic].intersection(keys))
            for client in self.clients
            if client.number not in besides
            for topic, keys in wanted.items()
        )

    def drop(self, seconds: float, pause: float) -> None:
        """Break sockets at random for a while."""
        self._dropping = asyncio.get_running_loop().create_task(self._drop(seconds, pause))

    async def _drop(self, seconds: float, pause: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            victim = self.chance.choice(self.clients)
            if victim.socket is not None:
                victim.socket.transport.abort()
            await asyncio.sleep(pause * self.chance.uniform(0.5, 1.5))

    async def end(self) -> None:
        """Disconnect everybody."""
        tasks = [*self._running, *([self._dropping] if self._dropping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def write(self, path: str) -> None:
        """Write down what everybody noted."""
        write_records(path, (record for client in self.clients for record in client.records))


async def _perform(crowd: Crowd | None, command: dict[str, Any]) -> tuple[Crowd | None, dict[str, Any]]:
    match command.pop("do"):
        case "open":
            if crowd is not None:  # of a scenario that failed
                await crowd.end()
            crowd = Crowd(**command)
            return crowd, {"done": await crowd.until(lambda: all(each.subscribed for each in crowd.clients), 30)}
        case "wait" if crowd is not None:
            wanted, besides = command["wanted"], command["besides"]
            await crowd.until(lambda: not crowd.lacking(wanted, besides), command["seconds"])
            return crowd, {"lacking": crowd.lacking(wanted, besides)}
        case "drop" if crowd is not None:
            crowd.drop(**command)
        case "stall" if crowd is not None:
            crowd.clients[command["client"]].reading.clear()
        case "read" if crowd is not None:
            crowd.clients[command["client"]].reading.set()
        case "close" if crowd is not None:
            await crowd.end()
            crowd.write(command["path"])
            return None, {}
    return crowd, {}


async def main() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    crowd: Crowd | None = None
    while line := await lines.readline():
        crowd, answer = await _perform(crowd, json.loads(line))
        print(json.dumps(answer), flush=True)  # noqa: T201 - this is how it answers


if __name__ == "__main__":
    asyncio.run(main())
