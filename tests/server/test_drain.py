"""How a server process stops at a signal, tried on real processes and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import websockets
from pytest_django import Settings
from websockets.asyncio.client import ClientConnection, connect

from notifications.delivery.draining import drain_over
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.testing.client import HubClient
from tests.conftest import API_KEY, OPEN_TOPICS
from tests.server.wire import TEXT, Peer, frame
from tests.server.wire import request as handshake
from tests.servers import PROJECT, Hub, HubProcess, eventually, free_port

SETTINGS = """
from hub.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "site_app"]
ROOT_URLCONF = "site_app.urls"
"""
URLS = """
import asyncio, time
from django.http import HttpResponse
from django.urls import include, path

async def slow(request):
    print("a slow view has begun")
    await asyncio.sleep(float(request.GET["seconds"]))
    return HttpResponse("finished")

def slow_in_thread(request):
    print("a slow view in a thread has begun")
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("finished")

urlpatterns = [path("slow/", slow), path("slow/thread/", slow_in_thread), path("", include("hub.urls"))]
"""
RPC = """
import asyncio
from notifications.delivery.rpc import ANYBODY, rpc

@rpc("test.slow", params=float, permission=ANYBODY)
async def slow(context, seconds):
    print("a slow function has begun")
    await asyncio.sleep(seconds)
    return "answered"
"""
HUB_CLASS = "notifications.server.websocket:HubWebSocketProtocol"
SANSIO_CLASS = "notifications.server.sansio:SansIOWebSocketProtocol"
WEBSOCKET_CLASSES = {"uvicorn": HUB_CLASS, "uvicorn-sansio": SANSIO_CLASS, "uvicorn-own": "websockets-sansio"}
TOPIC = "open:drain"
SHUTDOWN = (3001, "shutdown")


class Server(Hub):
    """A server process: `runhub`, or uvicorn with one of the WebSocket classes."""

    def __init__(self, kind: str, folder: Path, *, window: float, arguments: tuple[str, ...] = (), **more: str) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        command = ["-m", "hub", "runhub", self.address]
        if kind != "runhub":
            command = ["-m", "uvicorn", "hub.asgi:application", "--port", str(self.port)]
            command += ["--ws", WEBSOCKET_CLASSES[kind], *arguments]
        environment = {
            "HUB_DATA": str(folder / "data"),
            "HUB_DRAIN_SECONDS": str(window),
            "HUB_TOPICS": OPEN_TOPICS,
            "HUB_API_KEYS": API_KEY,
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}",
            **more,
        }
        HubProcess.__init__(self, command, folder, environment, name=f"server-{self.port}")
        self.wait_until_live()
        self.client = httpx.AsyncClient(base_url=self.url, timeout=10)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def begun(self, what: str) -> None:
        """Wait until a slow view or function has begun."""
        await asyncio.to_thread(self.wait_for, f"a slow {what} has begun")

    def subscribers(self) -> int:
        """The subscriptions of this process."""
        found = re.findall(r'^hub_subscriptions\{namespace="open"\} (\d+)', httpx.get(f"{self.url}/metrics").text, re.M)
        return int(found[0]) if found else 0

    async def ended(self, *, seconds: float = 15) -> int:
        """The exit code; what was logged is no error."""
        await self.client.aclose()
        code = await asyncio.to_thread(self.process.wait, seconds)
        for mistake in ("ERROR", "CRITICAL", "Traceback", "Exception"):
            assert mistake not in self.output, self.output
        return code

    async def publish(self, *data: Any, topic: str = TOPIC) -> None:
        """Publish events through the HTTP API."""
        commands = [{"publish": {"channel": topic, "data": one}} for one in data]
        answer = await self.client.post("/api/batch", json={"commands": commands}, headers={"X-API-Key": API_KEY})
        assert answer.status_code == 200, answer.text
        assert all("publish" in reply for reply in answer.json()["replies"]), answer.text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated database, and an app with slow views and a slow function."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "site_app").mkdir()
    (folder / "site_settings.py").write_text(SETTINGS)
    for name, text in {"__init__.py": "", "urls.py": URLS, "rpc.py": RPC}.items():
        (folder / "site_app" / name).write_text(text)
    environment = {"HUB_DATA": str(folder / "data")}
    migrating = HubProcess(["-m", "hub", "migrate"], folder, environment, name="migrate")
    assert migrating.process.wait(60) == 0, migrating.output
    return folder


Start = Callable[..., Server]


@pytest.fixture
def start(prepared: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts servers that share a database, and Redis where the test is given one."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    running: list[Server] = []

    def start_one(kind: str, *, window: float = 1.0, **options: Any) -> Server:
        kind, _, log = kind.partition("+")
        if log == "redis":
            options = {"REDIS_URL": request.getfixturevalue("redis_url"), "SECRET_KEY": "of one test", **options}
        running.append(Server(kind, tmp_path, window=window, **options))
        return running[-1]

    yield start_one
    for server in running:
        server.kill()


class Ended(NamedTuple):
    """What a socket received, and how and when it ended, in seconds on the monotonic clock."""

    messages: list[dict[str, Any]]
    code: int
    reason: str
    at: float

    @property
    def data(self) -> list[Any]:
        """The data of the events among the messages."""
        return [found["push"]["pub"]["data"] for found in self.messages if "pub" in found.get("push", {})]


async def until_closed(socket: ClientConnection) -> Ended:
    messages: list[dict[str, Any]] = []
    with pytest.raises(websockets.ConnectionClosed) as closed:
        while True:
            text = await asyncio.wait_for(socket.recv(), 15)
            messages += [json.loads(line) for line in str(text).split("\n")]
    at = time.monotonic()
    assert closed.value.rcvd is not None, "closed without a close frame"
    return Ended(messages, closed.value.rcvd.code, closed.value.rcvd.reason, at)


@contextlib.asynccontextmanager
async def sockets(server: Server, size: int, *, topic: str = TOPIC) -> AsyncIterator[list[ClientConnection]]:
    """So many sockets that are subscribed to a topic."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened() -> ClientConnection:
            socket = await stack.enter_async_context(connect(f"ws://{server.address}/connection/websocket"))
            await socket.send(f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":"{topic}"}}}}')
            received = ""
            while '"id":2' not in received:
                received = str(await asyncio.wait_for(socket.recv(), 10))
            return socket

        yield list(await asyncio.gather(*(opened() for _ in range(size))))


async def refusals(server: Server) -> dict[str, tuple[int, str]]:
    """How new clients of each transport are refused: the status, and when to come back."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(f"ws://{server.address}/connection/websocket")
    stream = await server.client.post("/connection/http_stream", content='{"id":1,"connect":{}}')
    events = await server.client.get("/events", params={"topic": TOPIC}, headers={"accept": "text/event-stream"})
    return {
        "websocket": (refused.value.response.status_code, refused.value.response.headers["retry-after"]),
        "http_stream": (stream.status_code, stream.headers["retry-after"]),
        "events": (events.status_code, events.text.splitlines()[0]),
    }


@pytest.mark.parametrize("kind", ["runhub", "uvicorn+redis", "uvicorn-sansio"])
async def test_sessions_are_closed_over_the_window_and_served_until_then(start: Start, kind: str) -> None:
    server = start(kind)
    async with sockets(server, 200) as opened:
        ends = [asyncio.create_task(until_closed(socket)) for socket in opened]
        begun = time.monotonic()

        server.signal()
        while (ready := await server.client.get("/health/ready")).status_code == 200:
            assert time.monotonic() - begun < 0.8
        told = time.monotonic()
        refused = await refusals(server)
        await server.publish("late")
        published = time.monotonic()
        ended = await asyncio.gather(*ends)
        code = await server.ended()

    assert ready.json()["checks"]["switchboard"] == "the process is stopping"
    assert refused == {"websocket": (503, "5"), "http_stream": (503, "5"), "events": (200, "retry: 5000")}
    assert {(end.code, end.reason) for end in ended} == {SHUTDOWN}
    after = sorted(end.at - begun for end in ended)
    assert sum(at > told - begun for at in after) > 20
    assert 0.7 < after[-1] < 2.5
    for tenth in range(1, 10):
        assert sum(at < tenth / 10 for at in after) < 20 * tenth + 40
    assert all(end.data == ["late"] for end in ended if end.at > published + 0.1)
    assert any(end.data == ["late"] for end in ended)
    assert code == 0
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["runhub", "uvicorn+redis"])
async def test_what_runs_is_brought_to_its_end(start: Start, kind: str) -> None:
    server = start(kind, window=0)
    subscribe = f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":"{TOPIC}"}}}}'
    async with (
        sockets(server, 3) as (calling, publishing, idle),
        server.client.stream("GET", "/events", params={"topic": TOPIC}) as events,
        server.client.stream("POST", "/connection/http_stream", content=subscribe) as lines,
        server.client.stream("GET", "/connection/sse", params={"cf_connect": '{"id":1,"connect":{}}'}) as emulated,
    ):
        asked = [
            asyncio.create_task(server.client.get(path, params={"seconds": "1.2"}))
            for path in ("/slow/", "/slow/thread/")
        ]
        await server.begun("view")
        await server.begun("view in a thread")
        publications = [{"id": n, "publish": {"channel": TOPIC, "data": n}} for n in range(3, 103)]
        await publishing.send("\n".join(json.dumps(command) for command in publications))
        await calling.send('{"id":3,"rpc":{"method":"test.slow","data":0.8}}\n{"id":4,"history":{"channel":"x"}}')
        await server.begun("function")
        begun = time.monotonic()

        server.signal()
        called, published, waited = await asyncio.gather(*map(until_closed, (calling, publishing, idle)))
        streamed = [[line async for line in stream.aiter_lines()] for stream in (events, lines, emulated)]
        answers = await asyncio.gather(*asked)
        code = await server.ended()

    replies = [found for found in called.messages if "push" not in found]
    assert replies[0] == {"id": 3, "rpc": {"data": "answered"}}
    assert (replies[1]["id"], replies[1]["error"]["code"]) == (4, 102)
    assert sorted(found["id"] for found in published.messages if "publish" in found) == list(range(3, 103))
    assert {(end.code, end.reason) for end in (called, published, waited)} == {SHUTDOWN}
    assert waited.at < called.at
    disconnect = {"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}
    assert streamed[0][-3:] == ["retry: 3000", ": closed, 3001 shutdown", ""]
    assert json.loads(streamed[1][-1]) == disconnect
    assert json.loads([line for line in streamed[2] if line][-1].removeprefix("data: ")) == disconnect
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "finished")] * 2
    assert code == 0
    assert time.monotonic() - begun < 5


async def test_a_command_that_takes_too_long_does_not_hold_the_close(start: Start) -> None:
    server = start("uvicorn", window=0.2)
    async with sockets(server, 1) as (calling,):
        await calling.send('{"id":3,"rpc":{"method":"test.slow","data":30}}')
        await server.begun("function")
        begun = time.monotonic()

        server.signal()
        called = await until_closed(calling)

    assert called.code == 3001
    assert 2 < called.at - begun < 5
    assert await server.ended() == 0


@pytest.mark.parametrize("kind", ["runhub", "uvicorn-own"])
async def test_peers_that_have_stopped_reading_do_not_hold_the_exit(start: Start, kind: str) -> None:
    server = start(kind, window=0, HUB_MAX_OUTGOING_BYTES="100000000")
    subscribe = f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":"{TOPIC}"}}}}'
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.port, receive_buffer=4_096)) for _ in range(3)]
        socket, events, lines = peers
        socket.send(handshake("/connection/websocket"))
        assert socket.response().status == 101
        for line in subscribe.split("\n"):
            socket.send(frame(TEXT, line.encode()))
        events.send(f"GET /events?topic={TOPIC} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        post = f"POST /connection/http_stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(subscribe)}\r\n\r\n"
        lines.send((post + subscribe).encode())
        await asyncio.to_thread(eventually, lambda: server.subscribers() == 3)
        for _ in range(4):
            await server.publish(*["x" * 60_000] * 20)
        begun = time.monotonic()

        server.signal()
        code = await server.ended()

    assert time.monotonic() - begun < 9
    assert server.output.count("a connection is aborted") == 3
    assert code == 0


@pytest.mark.parametrize("kind", ["runhub", "uvicorn"])
async def test_a_second_signal_ends_it_at_once(start: Start, kind: str) -> None:
    server = start(kind, window=30)
    async with sockets(server, 200) as opened:
        asked = asyncio.create_task(server.client.get("/slow/thread/", params={"seconds": "20"}))
        ends = [asyncio.create_task(socket.wait_closed()) for socket in opened]
        await server.begun("view in a thread")
        server.signal()
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        assert (await server.client.get("/health/ready")).status_code == 503
        begun = time.monotonic()

        server.signal()
        code = await server.ended()

        assert time.monotonic() - begun < 1
        with pytest.raises(httpx.TransportError):
            await asked
    assert code == 128 + signal.SIGTERM


async def test_a_signal_that_a_supervisor_passes_on_is_no_second_one(start: Start) -> None:
    server = start("uvicorn+redis", arguments=("--workers", "2"))
    async with sockets(server, 40) as opened:
        ends = [asyncio.create_task(until_closed(socket)) for socket in opened]
        supervisor = psutil.Process(server.process.pid)
        begun = time.monotonic()

        for process in [supervisor, *supervisor.children()]:  # as a terminal does at Ctrl-C
            process.send_signal(signal.SIGINT)
        ended = await asyncio.gather(*ends)
        code = await server.ended()

    assert {end.code for end in ended} == {3001}
    assert 0.7 < max(end.at for end in ended) - begun < 2
    assert code == 0


class Follower:
    """A client that receives the events of the topic, and goes to another process when it is sent away."""

    def __init__(self, *servers: Server) -> None:
        self.addresses = [server.address for server in servers]
        self.got: list[Any] = []
        self.codes: list[int] = []
        self.subscribed = asyncio.Event()
        self.epoch, self.offset = "", 0

    async def follow(self) -> None:
        """Receive events up to the last one."""
        while not self.done:
            async with connect(f"ws://{self.addresses.pop(0)}/connection/websocket") as socket:
                since = {"recover": True, "epoch": self.epoch, "offset": self.offset} if self.epoch else {}
                await socket.send(json.dumps({"id": 1, "connect": {}}))
                await socket.send(json.dumps({"id": 2, "subscribe": {"channel": TOPIC, **since}}))
                while not (self.done or socket.close_code):
                    with contextlib.suppress(websockets.ConnectionClosed):
                        for line in str(await asyncio.wait_for(socket.recv(), 15)).split("\n"):
                            self.receive(json.loads(line))
            self.codes.append(socket.close_code or 0)

    @property
    def done(self) -> bool:
        return self.got[-1:] == ["last"]

    def receive(self, message: dict[str, Any]) -> None:
        """Take what was missed, and what is live."""
        if "subscribe" in message:
            assert message["subscribe"].get("recovered", False) is bool(self.epoch)
            self.epoch = message["subscribe"]["epoch"]
            self.subscribed.set()
        events = message.get("subscribe", {}).get("publications", [])
        events += [message["push"]["pub"]] if "pub" in message.get("push", {}) else []
        for event in events:
            self.got.append(event["data"])
            self.offset = event["offset"]


async def test_clients_go_on_at_another_process_without_loss(start: Start) -> None:
    first, second = start("uvicorn+redis"), start("uvicorn+redis")
    followers = [Follower(first, second) for _ in range(20)]
    following = [asyncio.create_task(follower.follow()) for follower in followers]
    for follower in followers:
        await asyncio.wait_for(follower.subscribed.wait(), 10)
    for number in range(10):
        await second.publish(number)

    first.signal()
    published = 10
    while first.process.poll() is None:
        await second.publish(published)
        published += 1
    await second.publish("last")
    await asyncio.gather(*following)

    assert [follower.got for follower in followers] == [[*range(published), "last"]] * 20
    assert [follower.codes for follower in followers] == [[3001, 1000]] * 20
    assert await first.ended() == 0


@pytest.fixture
async def switchboard(settings: Settings) -> AsyncIterator[Switchboard]:
    """The switchboard of the process of the test."""
    settings.HUB_SOCKET = ""
    yield await current_switchboard()
    await stop_current()


@pytest.mark.django_db(transaction=True)
async def test_few_sessions_need_no_window(switchboard: Switchboard) -> None:
    clients = [await HubClient.connected() for _ in range(4)]
    begun = time.monotonic()

    await drain_over(switchboard, 60)

    assert time.monotonic() - begun < 1
    assert [client.transport.closed.result().code for client in clients] == [3001] * 4


@pytest.mark.django_db(transaction=True)
async def test_a_session_that_was_about_to_open_is_closed_as_well(switchboard: Switchboard) -> None:
    await HubClient.connected()
    draining = asyncio.create_task(drain_over(switchboard, 60))
    await asyncio.sleep(0)

    late = await HubClient.opened()
    await asyncio.wait_for(draining, 1)

    assert late.transport.closed.result().code == 3001
    assert switchboard.sessions == {}
