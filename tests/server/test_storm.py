"""A hub that is killed, and thousands of sockets that come back at once to the one that takes its place."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jwt
import pytest
import redis
from channels.layers import channel_layers
from pytest_django import Settings
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from notifications.events import publish
from tests.bench.loadclient import LoadClient, compiler, fault_of
from tests.conftest import OPEN_TOPICS, TOKEN_SECRET
from tests.server.wire import TEXT, Peer, frame
from tests.server.wire import request as handshake
from tests.servers import Hub, RedisServer, free_port, redis_server_binary, required

SOCKETS = 1_000
#: Handshakes under way at once, as many as a client of one thread gets done in time.
AT_ONCE = 100
TOPIC = "open:storm"


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Path) -> Iterator[RedisServer]:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = server.url
    backend = "notifications.events.redis_layer.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [{"address": server.url}]}}}
    channel_layers.backends.clear()
    yield server
    server.stop()


class Follower:
    """A client that keeps its cursor, and comes back with it."""

    def __init__(self, address: str) -> None:
        self.url = f"ws://{address}/connection/websocket"
        self.epoch = ""
        self.offsets: list[int] = []
        self.recovered: bool | None = None
        self.socket: ClientConnection | None = None
        self._lines: list[str] = []

    async def follow(self, limit: asyncio.Semaphore) -> None:
        """Subscribe, from where this client was, and take what it missed."""
        subscribe: dict[str, Any] = {"channel": TOPIC}
        if self.epoch:
            subscribe |= {"recover": True, "epoch": self.epoch, "offset": len(self.offsets)}
        async with limit:
            self.socket = await connect(self.url, compression=None, ping_interval=None, open_timeout=30)
            await self.socket.send(f'{{"id":1,"connect":{{}}}}\n{json.dumps({"id": 2, "subscribe": subscribe})}')
            while (reply := await self._next()).get("id") != 2:
                pass
        result = reply["subscribe"]
        self.epoch, self.recovered = result["epoch"], result.get("recovered", False)
        self.offsets += [found["offset"] for found in result.get("publications", [])]

    async def until(self, offset: int) -> None:
        """Take what is pushed, up to an offset."""
        while len(self.offsets) < offset:
            message = await self._next()
            if "pub" in message.get("push", {}):
                self.offsets.append(message["push"]["pub"]["offset"])

    async def lost(self) -> None:
        """Wait until the socket is gone."""
        assert self.socket is not None
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed:
            self.socket = None

    async def _next(self) -> dict[str, Any]:
        assert self.socket is not None
        if not self._lines:
            self._lines = str(await asyncio.wait_for(self.socket.recv(), 20)).split("\n")
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        return message


async def test_a_thousand_sockets_come_back_to_a_hub_that_was_killed(own_redis: RedisServer, tmp_path: Path) -> None:
    options = {"REDIS_URL": own_redis.url, "SECRET_KEY": "of one test", "HUB_TOPICS": OPEN_TOPICS}
    port, statistics = free_port(), redis.Redis.from_url(own_redis.url)
    hub = await asyncio.to_thread(Hub, tmp_path, port=port, **options)
    followers = [Follower(hub.address) for _ in range(SOCKETS)]
    limit = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(follower.follow(limit) for follower in followers))
    for number in range(2):
        await asyncio.to_thread(publish, TOPIC, "message", number)
    await asyncio.gather(*(follower.until(2) for follower in followers))

    hub.kill()
    await asyncio.gather(*(follower.lost() for follower in followers))
    for number in range(5):
        await asyncio.to_thread(publish, TOPIC, "message", number)
    again = await asyncio.to_thread(Hub, tmp_path, port=port, **options)
    statistics.config_resetstat()
    began = time.monotonic()
    await asyncio.gather(*(follower.follow(limit) for follower in followers))
    seconds = time.monotonic() - began
    reads: int = statistics.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0)  # type: ignore[union-attr]
    await asyncio.to_thread(publish, TOPIC, "message", "live")
    await asyncio.gather(*(follower.until(8) for follower in followers))
    await asyncio.gather(*(follower.socket.close() for follower in followers if follower.socket is not None))
    again.stop()

    assert all(follower.recovered for follower in followers)
    assert all(follower.offsets == [1, 2, 3, 4, 5, 6, 7, 8] for follower in followers)
    # One, and another whenever what was read had been let go.
    assert reads <= 1 + seconds


TOPICS = 5
#: What the topics were published before and after the hub is killed. The clients have seen some of what was before.
BEFORE, AFTER = 3, 5
DECLARED = {
    name: {"allow_subscribe_for_client": True, "allow_publish_for_client": True, "allow_recovery": True, **kept}
    for name, kept in {"window": {"history_size": 100, "history_ttl": "300s"}, "ledger": {"durable": True}}.items()
}
PUBLISH = """
import json
from notifications.events import publish
for topic in {topics}:
    for number in range({first}, {last} + 1):
        event = publish(topic, "message", number)
    print(json.dumps([topic, event.offset, event.epoch]))
"""


class Watch:
    """Asks a hub again and again whether it lives, each time on a new connection, while something else goes on."""

    def __init__(self, hub: Hub) -> None:
        self.slowest = 0.0
        self.answers: list[int] = []
        self._hub = hub
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._hub.port, timeout=60)
            connection.request("GET", "/health/live")
            self.answers.append(connection.getresponse().status)
            connection.close()
            self.slowest = max(self.slowest, time.monotonic() - began)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


class Crowd:
    """The clients of one namespace: topics, and who follows each from where."""

    def __init__(self, namespace: str, folder: Path, cookies: list[str], sockets: int) -> None:
        self.namespace = namespace
        self.topics = [f"{namespace}:storm-{number}" for number in range(TOPICS)]
        self.probe = f"{namespace}:probe"
        self.epochs: dict[str, str] = {}
        self.cookies = cookies
        self.sockets = sockets
        self._folder = folder

    def publish(self, hub: Hub, first: int, last: int) -> None:
        """Publish so many numbers to each topic, from a process of its own."""
        published = hub.command(
            "shell", "-c", PUBLISH.format(topics=[*self.topics, self.probe], first=first, last=last)
        )
        for line in published.splitlines():
            if line.startswith("["):
                topic, offset, epoch = json.loads(line)
                assert offset == last
                assert self.epochs.setdefault(topic, epoch) == epoch

    def commands(self, topic: str, *, token: str = "", since: int | None = None) -> str:
        """What a client sends first: one that comes for the first time, or back with the offset of its cursor."""
        subscribe: dict[str, Any] = {"channel": topic, "recoverable": True}
        if since is not None:
            subscribe |= {"recover": True, "epoch": self.epochs[topic], "offset": since}
        connect = {"token": token} if token else {}
        return f"{json.dumps({'id': 1, 'connect': connect})}\n{json.dumps({'id': 2, 'subscribe': subscribe})}"

    def client(self, hub: Hub, *, back: bool) -> LoadClient:
        """A load client whose sockets all connect at once, each for a user: of a session, or of a token."""
        commands, headers, answers = [], [], []
        recovered = [self._recovered(hub, since) if back else '"subscribe":{' for since in range(BEFORE + 1)]
        for number in range(self.sockets):
            cookie = self.cookies[number // 4 % len(self.cookies)] if number % 4 == 0 else ""
            headers.append(f"Origin: {hub.url}" + (f"\r\nCookie: {cookie}" if cookie else ""))
            since = number // TOPICS % (BEFORE + 1)
            token = "" if cookie else token_of(f"user {number}")
            topic = self.topics[number % TOPICS]
            commands.append(self.commands(topic, token=token, since=since if back else None))
            # The first event of a run names it.
            answers.append(recovered[since].replace(self.epochs[self.probe], self.epochs[topic]))
        return LoadClient(
            [
                *("--address", hub.address, "--path", "/connection/websocket", "--protocol", "centrifuge"),
                *("--headers-file", self._file("headers", headers)),
                *("--preamble-file", self._file("commands", commands)),
                *("--ready-file", self._file("answers", answers)),
                # All at once are more than wait to be accepted: the kernel may reset some.
                *("--topics", str(TOPICS), "--concurrency", str(self.sockets), "--again", str(self.sockets)),
                *("--publisher", "ws", "--publisher-path", "/connection/websocket"),
                *("--publisher-preamble", f'{{"id":1,"connect":{{"token":"{token_of("publisher")}"}}}}'),
                *("--publisher-ready", '"connect":{'),
                *("--publication", f'{{"id":%n,"publish":{{"channel":"{self.namespace}:storm-%t","data":%p}}}}'),
            ]
        )

    def _recovered(self, hub: Hub, since: int) -> str:
        """What everybody with this cursor has to be answered, as one client is, on a topic that no others follow."""
        with Peer(hub.port) as peer:
            peer.send(handshake("/connection/websocket", f"Origin: {hub.url}"))
            assert peer.response().status == 101
            peer.send(frame(TEXT, self.commands(self.probe, token=token_of("probe"), since=since).encode()))
            lines: list[str] = []
            while not any('"id":2' in line for line in lines):
                lines += peer.text().splitlines()
        answer = lines[-1]
        result = json.loads(answer)["subscribe"]
        assert [found["offset"] for found in result["publications"]] == list(range(since + 1, BEFORE + AFTER + 1))
        assert result["recovered"] is True
        return answer[answer.index('"publications":') :]

    def _file(self, name: str, entries: list[str]) -> str:
        path = self._folder / f"{self.namespace}-{name}"
        path.write_text("\0".join(entries) + "\0", newline="")
        return str(path)


def token_of(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 3_600}, TOKEN_SECRET, algorithm="HS256")


def browsers(hub: Hub, number: int) -> list[str]:
    """The cookies of so many signed-in users who were connected before."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.bench.accounts", str(number), str(number)],
        cwd=hub.folder,
        env=hub.environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return [returning(hub, f"sessionid={session}") for session in json.loads(made.stdout)["sessions"]]


def returning(hub: Hub, cookie: str) -> str:
    """A session's cookie, with those that the answer to its first handshake sets."""
    with Peer(hub.port) as peer:
        lines = (f"Host: {hub.address}", f"Origin: {hub.url}", f"Cookie: {cookie}")
        peer.send(handshake("/connection/websocket", *lines, without=("Host",)))
        return "; ".join([cookie, *(found.partition(";")[0] for found in peer.response().all("set-cookie"))])


@pytest.fixture
def hubs() -> Iterator[list[Hub]]:
    """Takes hubs that are to end with the test."""
    started: list[Hub] = []
    yield started
    for hub in started:
        hub.stop()


@pytest.mark.timeout(600)
def test_all_who_come_back_at_once_are_resumed_from_one_read_per_topic(
    request: pytest.FixtureRequest, own_redis: RedisServer, hubs: list[Hub], tmp_path: Path
) -> None:
    if compiler() is None:
        required("a C compiler")
    sockets = 5_000 if request.config.getoption("long") else 500
    queries = tmp_path / "queries"
    options = {
        "DJANGO_SETTINGS_MODULE": "tests.server.noted_queries",
        "NOTED_QUERIES": str(queries),
        "REDIS_URL": own_redis.url,
        "SECRET_KEY": "of one test",
        "HUB_TOPICS": json.dumps(DECLARED),
        "HUB_TOKEN_SECRET": TOKEN_SECRET,
    }
    port, statistics = free_port(), redis.Redis.from_url(own_redis.url)
    hub = Hub(tmp_path, port=port, **options)
    hubs.append(hub)
    cookies = browsers(hub, sockets // 4)
    crowds = [Crowd(namespace, tmp_path, cookies[half::2], sockets // 2) for half, namespace in enumerate(DECLARED)]
    for crowd in crowds:
        crowd.publish(hub, 1, BEFORE)
    before = [crowd.client(hub, back=False) for crowd in crowds]
    with ThreadPoolExecutor() as both:
        list(both.map(lambda client: client.subscribe(sockets // 2), before))
    hub.kill()
    for client in before:
        client.quit()
    for crowd in crowds:
        crowd.publish(hub, BEFORE + 1, BEFORE + AFTER)

    again = Hub(tmp_path, port=port, **options)
    hubs.append(again)
    back = [crowd.client(again, back=True) for crowd in crowds]
    statistics.config_resetstat()
    asked = len(queries.read_text().splitlines())
    with Watch(again) as watch, ThreadPoolExecutor() as both:
        resumed = list(both.map(lambda client: client.subscribe(sockets // 2), back))
    seconds = max(result["seconds"] for result in resumed)
    found = queries.read_text().splitlines()[asked:]
    reads: int = statistics.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0)  # type: ignore[union-attr]
    live = []
    for client in back:
        client.join_publishers()
        live.append(client.command(f"latency {2 * TOPICS} 5"))
        client.quit()

    stored = [query for query in found if "storedevent" in query]
    print(  # noqa: T201 - shown with -s, and with a failure
        f"{sockets} sockets were back after {seconds:.2f} s ({sum(result['again'] for result in resumed)} of them at a "
        f"second attempt): {reads} reads of Redis, {len(stored)} of stored events, {len(found)} queries in all; "
        f"/health/live answered {len(watch.answers)} times, in {watch.slowest:.3f} s at most"
    )
    assert set(watch.answers) == {200}
    assert [fault_of(result) for result in live] == [None, None]
    # One read per topic, one more for who reaches back further than the first, and again when those are forgotten.
    assert reads <= 2 * TOPICS * (1 + seconds)
    assert len(stored) <= 2 * TOPICS * (1 + seconds)
    assert len(found) <= 20 * (1 + seconds)
    assert not [query for query in found if query.startswith("event loop")]
    assert "Traceback" not in again.output
