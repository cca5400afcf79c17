"""The transports for clients that cannot have a WebSocket: a streamed answer, and requests to `/emulation`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from centrifuge.protocol import client_pb2
from channels.layers import channel_layers
from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[attr-defined]
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from pytest_django import Settings

from notifications.delivery import codes, transports
from notifications.delivery.emulated_streams import ascii_line
from notifications.delivery.protocols.centrifuge import EMULATED
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events import apublish
from notifications.events.redis_clients import async_client
from notifications.server.routing import hub_application
from notifications.testing.client import MemoryTransport
from tests.conftest import API_KEY, OPEN_TOPICS, TOKEN_SECRET
from tests.servers import Hub, HubProcess, free_port

PAGE = "https://pages.example"
OCTETS = {"Content-Type": "application/octet-stream"}

ids = count(1)
topics = (f"open:emulated-{number}" for number in ids)
both_transports = pytest.mark.parametrize("transport", ["sse", "http_stream"])


def lines(*commands: dict[str, Any]) -> str:
    """Commands as a client sends them; those without an id get 1, 2, 3, …"""
    numbered = ({"id": number, **command} for number, command in enumerate(commands, 1))
    return "\n".join(json.dumps(command) for command in numbered)


class Stream:
    """The client's end of an emulated connection."""

    def __init__(self, client: httpx.AsyncClient, response: httpx.Response) -> None:
        self.client = client
        self.response = response
        self.session = ""
        self.node = ""
        self._lines = response.aiter_lines()

    async def receive(self) -> dict[str, Any]:
        """The next reply."""
        while True:
            line = await asyncio.wait_for(anext(self._lines), 15)
            if line:
                reply: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return reply

    async def connected(self) -> dict[str, Any]:
        """The result of the connect command, which must be the next reply."""
        result: dict[str, Any] = (await self.receive())["connect"]
        self.session, self.node = result["session"], result["node"]
        return result

    async def rest(self) -> list[dict[str, Any]]:
        """All replies until the stream ends."""
        return [json.loads(line.removeprefix("data: ")) async for line in self._lines if line]

    async def send(self, data: str, *, to: str = "", node: str | None = None) -> int:
        """Send commands, to the process at `to` if that is given; returns the status."""
        body = {"session": self.session, "node": self.node if node is None else node, "data": data}
        return (await self.client.post(f"{to}/emulation", json=body)).status_code


@asynccontextmanager
async def opened(url: str, transport: str, data: str, **headers: str) -> AsyncIterator[Stream]:
    async with httpx.AsyncClient(base_url=url, timeout=15) as client:
        request: dict[str, Any] = {"content": data, "headers": {"Content-Type": "application/json", **headers}}
        if transport == "sse":
            request = {"params": {"cf_connect": data}, "headers": headers}
        method = "GET" if transport == "sse" else "POST"
        async with client.stream(method, f"/connection/{transport}", **request) as response:
            assert response.status_code == 200, await response.aread()
            yield Stream(client, response)


async def publish(hub: Hub, topic: str, data: object) -> None:
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        answer = await client.post(f"{hub.url}/api/publish", json={"channel": topic, "data": data})
        assert "result" in answer.json(), answer.text


# What clients do.


@both_transports
async def test_a_client_subscribes_publishes_and_unsubscribes(hub: Hub, transport: str) -> None:
    topic = next(topics)
    async with opened(hub.url, transport, lines({"connect": {}}, {"subscribe": {"channel": topic}})) as stream:
        await stream.connected()
        subscribed = await stream.receive()

        statuses = [await stream.send(lines({"id": 3, "publish": {"channel": topic, "data": {"text": "schön 😀"}}}))]
        got = [await stream.receive(), await stream.receive()]
        statuses.append(await stream.send(lines({"id": 4, "unsubscribe": {"channel": topic}})))
        unsubscribed = await stream.receive()
        await publish(hub, topic, "not for this client")
        statuses.append(await stream.send(lines({"id": 5, "presence_stats": {"channel": "nobody:declared"}})))
        last = await stream.receive()

    assert (subscribed["id"], subscribed["subscribe"]["recoverable"]) == (2, True)
    assert {"id": 3, "publish": {}} in got
    assert [reply["push"]["pub"]["data"] for reply in got if "push" in reply] == [{"text": "schön 😀"}]
    assert unsubscribed == {"id": 4, "unsubscribe": {}}
    assert (last["id"], last["error"]["code"]) == (5, 102)
    assert statuses == [204, 204, 204]


async def test_a_posted_sse_request_has_its_commands_in_the_body(hub: Hub) -> None:
    async with (
        httpx.AsyncClient(base_url=hub.url) as client,
        client.stream("POST", "/connection/sse", content=lines({"connect": {}})) as response,
    ):
        assert (await Stream(client, response).connected())["client"]


@both_transports
async def test_one_request_with_several_commands_keeps_their_order(hub: Hub, transport: str) -> None:
    topic = next(topics)
    commands = [{"id": number, "publish": {"channel": topic, "data": number}} for number in range(2, 42)]
    async with opened(hub.url, transport, lines({"connect": {}})) as stream:
        await stream.connected()
        await stream.send(lines({"id": 1, "subscribe": {"channel": topic}}, *commands))
        got = [await stream.receive() for _ in range(1 + 2 * len(commands))]

    published = [reply["push"]["pub"]["data"] for reply in got if "pub" in reply.get("push", {})]
    assert published == list(range(2, 42))
    assert [reply["id"] for reply in got if "id" in reply] == list(range(1, 42))


@both_transports
async def test_a_reconnecting_client_gets_what_it_missed(hub: Hub, transport: str) -> None:
    topic = next(topics)
    async with opened(hub.url, transport, lines({"connect": {}}, {"subscribe": {"channel": topic}})) as stream:
        await stream.connected()
        epoch = (await stream.receive())["subscribe"]["epoch"]
    for number in range(3):
        await publish(hub, topic, number)

    again = {"subscribe": {"channel": topic, "recover": True, "epoch": epoch, "offset": 1}}
    async with opened(hub.url, transport, lines({"connect": {}}, again)) as stream:
        await stream.connected()
        result = (await stream.receive())["subscribe"]

    assert (result["recovered"], [found["data"] for found in result["publications"]]) == (True, [1, 2])


@both_transports
async def test_a_token_says_who_connects(hub: Hub, transport: str) -> None:
    token = jwt.encode({"sub": "42", "exp": time.time() + 60}, TOKEN_SECRET, algorithm="HS256")
    async with opened(hub.url, transport, lines({"connect": {"token": token}})) as stream:
        result = await stream.connected()

    assert list(result["subs"]) == ["#42"]


@both_transports
async def test_a_client_that_goes_away_is_missed(hub: Hub, transport: str) -> None:
    topic = next(topics)
    subscribe = {"subscribe": {"channel": topic, "join_leave": True}}
    async with opened(hub.url, "http_stream", lines({"connect": {}}, subscribe)) as watching:
        await watching.connected()
        await watching.receive()  # the answer to subscribe
        await watching.receive()  # its own join
        async with opened(hub.url, transport, lines({"connect": {}}, subscribe)) as stream:
            client = (await stream.connected())["client"]
            joined = await watching.receive()

        left = await watching.receive()

    assert joined["push"]["join"]["info"]["client"] == client
    assert left["push"]["leave"]["info"]["client"] == client


# What is on the wire.


async def test_sse_has_the_lines_that_event_sources_read(hub: Hub) -> None:
    async with (
        httpx.AsyncClient(base_url=hub.url) as client,
        client.stream("GET", "/connection/sse", params={"cf_connect": "garbage"}) as response,
    ):
        body = await response.aread()

    assert body == b'\r\ndata: {"push":{"disconnect":{"code":3501,"reason":"bad request"}}}\n\n'
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"


async def test_http_stream_is_ascii(hub: Hub) -> None:
    topic, text = next(topics), 'schön, \u2028 "\\" 😀'
    await publish(hub, topic, text)
    history = {"history": {"channel": topic, "limit": 1}}
    subscribe = {"subscribe": {"channel": topic}}
    data = lines({"connect": {}}, subscribe, history)
    async with (
        httpx.AsyncClient(base_url=hub.url) as client,
        client.stream("POST", "/connection/http_stream", content=data) as response,
    ):
        received = response.aiter_bytes()
        body = b""
        while body.count(b"\n") < 3:
            body += await asyncio.wait_for(anext(received), 10)

    assert body.isascii()
    assert json.loads(body.splitlines()[2])["history"]["publications"][0]["data"] == text
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b"{}", b"{}\n"),
        ('{"ö":1.0e2}'.encode(), b'{"\\u00f6":1.0e2}\n'),
        ('"\\u00e9 \\\\é 😀\x7f"'.encode(), b'"\\u00e9 \\\\\\u00e9 \\ud83d\\ude00\x7f"\n'),
    ],
)
def test_escaping_changes_nothing_but_characters_beyond_ascii(payload: bytes, line: bytes) -> None:
    assert ascii_line(payload) == line


def binary(*commands: client_pb2.Command) -> bytes:
    return b"".join(_VarintBytes(command.ByteSize()) + command.SerializeToString() for command in commands)


class BinaryStream:
    """The client's end of a stream of Protobuf messages."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.aiter_bytes()
        self._unread = b""

    async def receive(self) -> client_pb2.Reply:
        """The next reply."""
        while True:
            if self._unread:
                length, start = _DecodeVarint32(self._unread, 0)
                if len(self._unread) >= start + length:
                    message, self._unread = self._unread[start : start + length], self._unread[start + length :]
                    return client_pb2.Reply.FromString(message)
            self._unread += await asyncio.wait_for(anext(self._pieces), 10)


async def test_http_stream_speaks_protobuf(hub: Hub) -> None:
    topic = next(topics)
    connect = client_pb2.Command(id=1, connect=client_pb2.ConnectRequest())
    subscribe = client_pb2.Command(id=2, subscribe=client_pb2.SubscribeRequest(channel=topic))
    say = client_pb2.Command(id=3, publish=client_pb2.PublishRequest(channel=topic, data='"schön"'.encode()))
    async with (
        httpx.AsyncClient(base_url=hub.url) as client,
        client.stream(
            "POST", "/connection/http_stream", content=binary(connect, subscribe), headers=OCTETS
        ) as response,
    ):
        stream = BinaryStream(response)
        connected = (await stream.receive()).connect
        subscribed = await stream.receive()
        request = client_pb2.EmulationRequest(node=connected.node, session=connected.session, data=binary(say))
        answer = await client.post("/emulation", content=request.SerializeToString(), headers=OCTETS)
        got = [await stream.receive(), await stream.receive()]
        request.data = b"\x02garbage"
        await client.post("/emulation", content=request.SerializeToString(), headers=OCTETS)
        last = await stream.receive()

    assert response.headers["content-type"] == "application/octet-stream"
    assert (subscribed.id, subscribed.subscribe.recoverable) == (2, True)
    assert answer.status_code == 204
    assert sorted(reply.id for reply in got) == [0, 3]
    assert [reply.push.pub.data for reply in got if not reply.id] == ['"schön"'.encode()]
    assert (last.push.disconnect.code, last.push.disconnect.reason) == (3501, "bad request")


# How sessions end.


@both_transports
@pytest.mark.parametrize("data", ["", "garbage", "{}", lines({"subscribe": {"channel": "open:1"}})])
async def test_a_stream_without_a_connect_command_is_closed(hub: Hub, transport: str, data: str) -> None:
    async with opened(hub.url, transport, data) as stream:
        assert await stream.rest() == [{"push": {"disconnect": {"code": 3501, "reason": "bad request"}}}]


@both_transports
async def test_what_is_no_command_closes_the_session(hub: Hub, transport: str) -> None:
    async with opened(hub.url, transport, lines({"connect": {}})) as stream:
        await stream.connected()

        statuses = [await stream.send("garbage")]
        rest = await stream.rest()
        statuses.append(await stream.send("garbage"))

    assert rest == [{"push": {"disconnect": {"code": 3501, "reason": "bad request"}}}]
    assert statuses == [204, 204]


@both_transports
async def test_the_server_disconnects_a_client(hub: Hub, transport: str) -> None:
    async with opened(hub.url, transport, lines({"connect": {}})) as stream:
        client = (await stream.connected())["client"]
        async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as api:
            await api.post(f"{hub.url}/api/disconnect", json={"user": "", "client": client})

        assert await stream.rest() == [{"push": {"disconnect": {"code": 3503, "reason": "force disconnect"}}}]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of little patience, for pages of any origin."""
    running = Hub(
        tmp_path_factory.mktemp("strict"),
        HUB_TOPICS=OPEN_TOPICS,
        HUB_API_KEYS=API_KEY,
        HUB_TOKEN_SECRET=TOKEN_SECRET,
        HUB_PING_SECONDS="1",
        HUB_PONG_SECONDS="1",
        HUB_STALE_SECONDS="1",
        HUB_ALLOWED_ORIGINS="*",
    )
    yield running
    running.stop()


@both_transports
async def test_only_a_client_that_answers_pings_stays(strict: Hub, transport: str) -> None:
    async with opened(strict.url, transport, lines({"connect": {}})) as stream:
        result = await stream.connected()
        pings = []
        for _ in range(2):
            pings.append(await stream.receive())
            assert await stream.send("{}") == 204
        pings.append(await stream.receive())

        rest = await stream.rest()

    assert (result["ping"], result["pong"]) == (1, True)
    assert pings == [{}, {}, {}]
    assert rest == [{"push": {"disconnect": {"code": 3012, "reason": "no pong"}}}]


@both_transports
async def test_a_client_whose_connect_failed_is_closed_as_stale(strict: Hub, transport: str) -> None:
    expired = jwt.encode({"sub": "42", "exp": time.time() - 60}, TOKEN_SECRET, algorithm="HS256")
    async with opened(strict.url, transport, lines({"connect": {"token": expired}})) as stream:
        failed, *rest = await stream.rest()

    assert (failed["id"], failed["error"]["code"]) == (1, 109)
    assert rest == [{"push": {"disconnect": {"code": 3502, "reason": "stale"}}}]


async def test_a_process_that_stops_says_so_to_its_clients(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    async with (
        opened(hub.url, "sse", lines({"connect": {}})) as one,
        opened(hub.url, "http_stream", lines({"connect": {}})) as other,
    ):
        await one.connected()
        await other.connected()

        code = await asyncio.to_thread(hub.stop)
        rest = [await one.rest(), await other.rest()]

    assert code == 0
    assert rest == 2 * [[{"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}]]
    assert "Traceback" not in hub.output


# What is refused.


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/emulation", b"", {}, 400),
        ("/emulation", b"garbage", {}, 400),
        ("/emulation", b'{"session":"s","node":"n"}', {}, 400),
        ("/emulation", b'{"session":"s","node":"n","data":{"id":1}}', {}, 400),
        ("/emulation", b'{"session":"s","node":"n","data":"\xff"}', {}, 400),
        ("/emulation", b"\xff", OCTETS, 400),
        ("/emulation", b'{"session":"s","node":"n","data":"{}"}', {}, 404),
        ("/emulation", client_pb2.EmulationRequest(node="n").SerializeToString(), OCTETS, 404),
        ("/emulation", b"x" * 65_537, {}, 413),
        ("/emulation", b"x" * 65_537, OCTETS, 413),
        ("/connection/sse", b"x" * 65_537, {}, 413),
        ("/connection/http_stream", b"x" * 65_537, {}, 413),
        ("/connection/http_stream", b"x" * 65_537, OCTETS, 413),
        ("/connection/http_stream", b"\xff", {}, 400),
    ],
)
async def test_a_request_that_cannot_be_is_a_problem(
    hub: Hub, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{hub.url}{path}", content=content, headers=headers)

    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_as_much_as_is_allowed_is_taken(hub: Hub) -> None:
    data = lines({"connect": {"data": ""}})
    data = data.replace('""', f'"{"x" * (65_536 - len(data))}"')
    async with opened(hub.url, "http_stream", data) as stream:
        assert (await stream.connected())["client"]


async def test_commands_for_a_session_that_has_ended_are_dropped(hub: Hub) -> None:
    async with opened(hub.url, "http_stream", lines({"connect": {}})) as stream:
        await stream.connected()
        stream.session = "0" * 32

        assert await stream.send("{}") == 204


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/emulation", "POST"),
        ("GET", "/connection/http_stream", "POST"),
        ("PUT", "/connection/sse", "GET, POST"),
        ("HEAD", "/connection/sse", "GET, POST"),
    ],
)
async def test_other_methods_are_refused(hub: Hub, method: str, path: str, allowed: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, f"{hub.url}{path}")

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


# Cookies and origins.


@pytest.fixture(scope="module")
def ana(hub: Hub) -> str:
    """The session cookie of ana."""
    return hub.sign_in("ana")


FETCHED = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"}


@pytest.mark.parametrize(
    ("transport", "headers"), [("sse", FETCHED), ("http_stream", {"Origin": "OWN"}), ("sse", {"Origin": "OWN"})]
)
async def test_the_cookie_of_an_own_page_counts(hub: Hub, ana: str, transport: str, headers: dict[str, str]) -> None:
    told = {name: value.replace("OWN", hub.url) for name, value in headers.items()}
    async with opened(hub.url, transport, lines({"connect": {}}), Cookie=f"sessionid={ana}", **told) as stream:
        result = await stream.connected()

    assert [name[0] for name in result["subs"]] == ["#"]
    assert "hub_passport" in stream.response.cookies


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": PAGE},
        {"Origin": "null"},
        {"Origin": PAGE, **FETCHED},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "image"},
    ],
)
@both_transports
async def test_no_other_page_acts_with_its_visitors_cookies(
    hub: Hub, ana: str, transport: str, headers: dict[str, str]
) -> None:
    topic = next(topics)
    forged = lines({"connect": {}}, {"subscribe": {"channel": topic}}, {"publish": {"channel": topic, "data": 1}})
    async with httpx.AsyncClient(base_url=hub.url, headers={"Cookie": f"sessionid={ana}", **headers}) as client:
        if transport == "sse":
            answer = await client.get("/connection/sse", params={"cf_connect": forged})
        else:
            answer = await client.post("/connection/http_stream", content=forged)
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        history = await client.post(f"{hub.url}/api/history", json={"channel": topic, "limit": 1})

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert history.json()["result"]["offset"] == 0


@pytest.mark.parametrize("path", ["/connection/sse", "/connection/http_stream", "/emulation"])
async def test_a_preflight_request_is_answered_for_allowed_origins_alone(hub: Hub, path: str) -> None:
    async with httpx.AsyncClient(base_url=hub.url) as client:
        own = await client.options(path, headers={"Origin": hub.url, "Access-Control-Request-Method": "POST"})
        foreign = await client.options(path, headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})

    assert own.status_code == 204
    assert own.headers["access-control-allow-origin"] == hub.url
    assert own.headers["access-control-allow-credentials"] == "true"
    assert "POST" in own.headers["access-control-allow-methods"]
    assert own.headers["access-control-allow-headers"] == "content-type"
    assert (foreign.status_code, foreign.headers.get("access-control-allow-origin")) == (403, None)
    assert own.headers["vary"] == foreign.headers["vary"] == "Origin"


@both_transports
async def test_where_any_origin_is_allowed_pages_bring_no_cookies(strict: Hub, transport: str) -> None:
    key = strict.sign_in()
    async with opened(strict.url, transport, lines({"connect": {}}), Origin=PAGE) as stream:
        result = await stream.connected()
        unknown = await stream.client.post(
            "/emulation", json={"session": "", "node": "", "data": ""}, headers={"Origin": PAGE}
        )
    async with httpx.AsyncClient(base_url=strict.url) as client:
        refused = await client.request(
            "GET" if transport == "sse" else "POST",
            f"/connection/{transport}",
            headers={"Origin": PAGE, "Cookie": f"sessionid={key}"},
        )

    assert "subs" not in result
    assert stream.response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in stream.response.headers
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (404, "*")
    assert refused.status_code == 403


async def test_pages_of_a_listed_origin_may_bring_cookies(tmp_path: Path) -> None:
    hub = Hub(tmp_path, HUB_ALLOWED_ORIGINS=PAGE)
    cookie = f"sessionid={hub.sign_in()}"
    async with opened(hub.url, "sse", lines({"connect": {}}), Origin=PAGE, Cookie=cookie) as stream:
        result = await stream.connected()
    hub.stop()

    assert [name[0] for name in result["subs"] if name[0] == "#"] == ["#"]
    assert stream.response.headers["access-control-allow-origin"] == PAGE
    assert stream.response.headers["access-control-allow-credentials"] == "true"


# Several processes.


@both_transports
async def test_commands_may_come_to_any_process(tmp_path: Path, redis_url: str, transport: str) -> None:
    environment = {
        "HUB_DATA": str(tmp_path / "data"),
        "HUB_TOPICS": OPEN_TOPICS,
        "SECRET_KEY": "the same for both processes of one test run",
        "REDIS_URL": redis_url.removesuffix("0") + "7",
    }
    HubProcess(["-m", "hub", "migrate"], tmp_path, environment, name="migrate").process.wait(60)
    urls, processes = [], []
    for name in ("first", "second"):
        port = free_port()
        command = ["-m", "uvicorn", "hub.asgi:application", "--port", str(port)]
        processes.append(HubProcess(command, tmp_path, environment, name=name))
        urls.append(f"http://127.0.0.1:{port}")
    for process in processes:
        process.wait_for("Uvicorn running")
    topic = next(topics)

    async with opened(urls[0], transport, lines({"connect": {}}, {"subscribe": {"channel": topic}})) as stream:
        await stream.connected()
        await stream.receive()
        several = lines(*({"id": 3 + number, "publish": {"channel": topic, "data": number}} for number in range(5)))
        status = await stream.send(several, to=urls[1])
        got = [await stream.receive() for _ in range(10)]
        unknown = await stream.send("{}", to=urls[1], node="nobody")

        await asyncio.to_thread(processes[0].stop)
        rest = await stream.rest()
        gone = [await stream.send("{}", to=urls[1])]
        deadline = time.monotonic() + 5
        while gone[-1] != 404 and time.monotonic() < deadline:  # known for a second
            gone.append(await stream.send("{}", to=urls[1]))
    processes[1].stop()

    assert (status, unknown, gone[-1]) == (204, 404, 404)
    assert [reply["id"] for reply in got if "id" in reply] == [3, 4, 5, 6, 7]
    assert [reply["push"]["pub"]["data"] for reply in got if "push" in reply] == [0, 1, 2, 3, 4]
    assert rest == [{"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}]
    assert "Traceback" not in processes[0].output + processes[1].output


# Inside one process.


@pytest.fixture(params=["in-process", "in-memory", "redis-hub", "redis-pubsub", "redis-core"])
async def other(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Switchboard]:
    """Another process of the hub, as far as the channel layer knows."""
    settings.HUB_SOCKET = ""
    if request.param == "in-memory":
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    elif request.param.startswith("redis"):
        url = request.getfixturevalue("redis_url")
        backend, host = {
            "redis-hub": ("notifications.events.redis_layer.RedisChannelLayer", {"address": url}),
            "redis-pubsub": ("channels_redis.pubsub.RedisPubSubChannelLayer", {"address": url}),
            "redis-core": ("channels_redis.core.RedisChannelLayer", {"address": url, "socket_timeout": None}),
        }[request.param]
        settings.HUB_REDIS_URL = url
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"hosts": [host]}}}
        await async_client().flushall()
    channel_layers.backends.clear()
    switchboard = Switchboard()
    await switchboard.start()
    yield switchboard
    await switchboard.stop()
    await stop_current()


async def nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("Django was asked")


def this_process() -> httpx.AsyncClient:
    """A client of the server process that is the test's own."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(hub_application(django=nowhere)), base_url="http://hub")


async def emulated_client(switchboard: Switchboard) -> tuple[Session, MemoryTransport, dict[str, Any]]:
    transport = MemoryTransport()
    session = Session(switchboard, EMULATED, transport)
    session.opened()
    session.feed(lines({"connect": {}}))
    connected = await asyncio.wait_for(transport.messages.get(), 5)
    return session, transport, connected["connect"]


@pytest.mark.django_db(transaction=True)
async def test_every_layer_carries_the_commands(other: Switchboard) -> None:
    _, transport, connected = await emulated_client(other)
    request = {"session": connected["session"], "node": connected["node"], "data": lines({"history": {"channel": "x"}})}

    async with this_process() as client:
        answer = await client.post("/emulation", json=request)
        unknown = await client.post("/emulation", json={**request, "node": "nobody"})

    assert (answer.status_code, unknown.status_code) == (204, 404)
    assert (await asyncio.wait_for(transport.messages.get(), 5))["error"]["code"] == 102


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("other", ["in-process"], indirect=True)
async def test_the_secret_of_a_session_that_has_ended_is_forgotten(other: Switchboard) -> None:
    session, _, connected = await emulated_client(other)
    assert other.emulated == {connected["session"]: session}

    session.closed()

    assert other.emulated == {}


@pytest.mark.django_db(transaction=True)
async def test_a_process_that_stops_takes_no_sessions(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    (await current_switchboard()).drain()

    async with this_process() as client:
        answer = await client.post("/connection/http_stream", content=lines({"connect": {}}))
    await stop_current()

    assert answer.status_code == 503


@pytest.mark.django_db(transaction=True)
async def test_a_process_that_has_enough_sessions_takes_no_more(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_MAX_SESSIONS = 1
    await emulated_client(await current_switchboard())

    async with this_process() as client:
        answer = await client.get("/connection/sse", params={"cf_connect": lines({"connect": {}})})
    await stop_current()

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.django_db(transaction=True)
async def test_a_stream_that_its_client_does_not_read_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_MAX_OUTGOING_BYTES = 10_000
    monkeypatch.setattr(transports, "_CLOSE_SECONDS", 0.1)
    body = lines({"connect": {}}, {"subscribe": {"channel": "open:slow"}}).encode()
    requested, subscribed, stuck = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if requested.is_set():
            await asyncio.Event().wait()
        requested.set()
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        if b'"id":2' in message.get("body", b""):
            subscribed.set()
        elif subscribed.is_set():
            stuck.set()
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/connection/http_stream", "headers": [], "query_string": b""}
    streaming = asyncio.create_task(hub_application(django=nowhere)(scope, receive, send))
    await asyncio.wait_for(subscribed.wait(), 5)
    switchboard = await current_switchboard()
    [session] = switchboard.sessions.values()

    await apublish("open:slow", "message", "x" * 5_000)
    await asyncio.wait_for(stuck.wait(), 5)
    for _ in range(4):
        await apublish("open:slow", "message", "x" * 5_000)
    await asyncio.wait_for(streaming, 5)
    await stop_current()

    assert session.closed_with == codes.SLOW


@pytest.mark.django_db(transaction=True)
async def test_without_redis_commands_for_others_are_refused_for_a_while(settings: Settings, redis_url: str) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_REDIS_URL = redis_url
    await current_switchboard()
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"

    async with this_process() as client:
        answer = await client.post("/emulation", json={"session": "s", "node": "another", "data": "{}"})
    settings.HUB_REDIS_URL = redis_url
    await stop_current()

    assert answer.status_code == 503
