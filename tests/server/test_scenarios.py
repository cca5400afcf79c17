"""What a server of the Centrifuge protocol has to stand, tried on a running hub with sockets of its own."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import httpx
import jwt
import pytest
import websockets
from centrifuge.fossil import apply_delta
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import API_KEY, TOKEN_SECRET
from tests.servers import Hub

TIMEOUT_SECONDS = 15.0
MOST_TOPICS = 2_000
MOST_BYTES = 1_200_000
KEPT = {
    "history_size": 300,
    "history_ttl": "300s",
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_subscriber": True,
    "allow_history_for_subscriber": True,
}
TOPICS = {
    "kept": KEPT,
    "short": {**KEPT, "history_size": 2},
    "cache": {**KEPT, "force_recovery_mode": "cache"},
    "delta": {**KEPT, "allowed_delta_types": ["fossil"]},
    "room": {
        **KEPT,
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "allow_presence_for_anonymous": True,
        "allow_presence_for_client": True,
        "allow_history_for_anonymous": True,
    },
}


@pytest.fixture(scope="module")
def patient_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that waits for nobody for long, and takes large messages and many subscriptions."""
    running = Hub(
        tmp_path_factory.mktemp("hub"),
        HUB_TOPICS=json.dumps(TOPICS),
        HUB_API_KEYS=API_KEY,
        HUB_TOKEN_SECRET=TOKEN_SECRET,
        HUB_STALE_SECONDS="2",
        HUB_PING_SECONDS="1",
        HUB_PONG_SECONDS="1",
        HUB_EXPIRED_SECONDS="0",
        HUB_MAX_SUBSCRIPTIONS=str(MOST_TOPICS),
        HUB_MAX_DATA_BYTES=str(MOST_BYTES),
        HUB_MAX_MESSAGE_BYTES=str(MOST_BYTES),
    )
    yield running
    running.stop()


class Refused(Exception):
    """A command was answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]


class Peer:
    """A client that keeps what it is told, and answers pings unless it is `silent`."""

    def __init__(self, socket: ClientConnection, *, silent: bool = False) -> None:
        self.socket = socket
        self.silent = silent
        self.pushes: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(websockets.ConnectionClosed):
            while True:
                for line in str(await self.socket.recv()).strip("\n").split("\n"):
                    await self._received(json.loads(line))
        for answer in self._answers.values():
            answer.cancel()

    async def _received(self, reply: dict[str, Any]) -> None:
        if "push" in reply:
            self.pushes.put_nowait(reply["push"])
        elif "id" in reply:
            self._answers.pop(reply["id"]).set_result(reply)
        elif not self.silent:
            await self.socket.send("{}")

    async def commands(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        """Send commands in one frame and return their replies."""
        lines, answers = [], []
        for command in commands:
            number = next(self._ids)
            self._answers[number] = asyncio.get_running_loop().create_future()
            answers.append(self._answers[number])
            lines.append(json.dumps({"id": number, **command}))
        await self.socket.send("\n".join(lines))
        return list(await asyncio.wait_for(asyncio.gather(*answers), TIMEOUT_SECONDS))

    async def command(self, method: str, /, **request: Any) -> dict[str, Any]:
        """Send a command and return its result. Raises Refused."""
        (reply,) = await self.commands({method: request})
        if "error" in reply:
            raise Refused(reply["error"])
        result: dict[str, Any] = reply[method]
        return result

    async def push(self) -> dict[str, Any]:
        """The next push."""
        return await asyncio.wait_for(self.pushes.get(), TIMEOUT_SECONDS)

    async def publications(self, size: int) -> list[dict[str, Any]]:
        """The next so many pushes, which have to be publications."""
        return [(await self.push())["pub"] for _ in range(size)]

    async def closed(self) -> tuple[int | None, str | None]:
        """Code and reason with which the hub closes."""
        await asyncio.wait_for(self.socket.wait_closed(), TIMEOUT_SECONDS)
        return self.socket.close_code, self.socket.close_reason


Open = Callable[..., Awaitable[Peer]]
Api = Callable[..., Awaitable[Any]]
Metric = Callable[[str], Awaitable[float]]


@pytest.fixture
async def open_socket(patient_hub: Hub) -> AsyncIterator[Open]:
    """Opens a socket on which nothing was sent."""
    opened: list[ClientConnection] = []

    async def open_socket(**options: Any) -> Peer:
        opened.append(
            await connect(f"ws://{patient_hub.address}/connection/websocket", max_size=None, compression=None)
        )
        return Peer(opened[-1], **options)

    yield open_socket
    await asyncio.gather(*(socket.close() for socket in opened))


@pytest.fixture
def connected(open_socket: Open) -> Open:
    """Opens a socket and connects on it, as the bearer of a token with some claims where there are any."""

    async def connected(*, silent: bool = False, **claims: Any) -> Peer:
        peer = await open_socket(silent=silent)
        await peer.command("connect", **({"token": token(**claims)} if claims else {}))
        return peer

    return connected


@pytest.fixture
async def http(patient_hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the hub's HTTP API and metrics."""
    headers = {"X-API-Key": API_KEY}
    async with httpx.AsyncClient(base_url=patient_hub.url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
        yield client


@pytest.fixture
def api(http: httpx.AsyncClient) -> Api:
    """Calls a method of the HTTP API."""

    async def call(method: str, **parameters: Any) -> Any:
        answer = (await http.post(f"/api/{method}", json=parameters)).json()
        assert "error" not in answer, answer
        return answer["result"]

    return call


@pytest.fixture
def metric(http: httpx.AsyncClient) -> Metric:
    """Reads a metric: the sum over the lines that begin with a text."""

    async def metric(beginning: str) -> float:
        lines = (await http.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(beginning))

    return metric


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


def unique(namespace: str) -> str:
    """A topic that no other scenario uses."""
    return f"{namespace}:{uuid.uuid4().hex}"


def token(**claims: Any) -> str:
    return jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")


# What is not of the protocol.


@pytest.mark.parametrize(
    "frame",
    [
        "garbage",
        '[{"id":2,"presence":{"channel":"kept:1"}}]',
        '"text"',
        "7",
        "null",
        "{}",
        '{"id":2}',
        '{"presence":{"channel":"kept:1"}}',
        '{"id":0,"history":{"channel":"kept:1"}}',
        '{"id":-1,"history":{"channel":"kept:1"}}',
        '{"id":4294967296,"history":{"channel":"kept:1"}}',
        '{"id":2,"connect":{}}',
        '{"id":2,"teleport":{}}',
        '{"id":2,"ping":{}}',
        '{"id":2,"history":{"channel":"kept:1"',
        '{"id":2,"subscribe":{"channel":""}}',
        '{"id":2,"subscribe":{}}',
        '{"id":2,"subscribe":{"channel":7}}',
        '{"id":2,"subscribe":{"channel":"kept:1","recover":true,"offset":-1}}',
        '{"id":2,"history":{"channel":"kept:1"}}\n\n{"id":3,"history":{"channel":"kept:1"}}',
        "",
        "\n",
        " ",
    ],
)
async def test_a_frame_that_is_not_of_the_protocol_ends_the_connection(connected: Open, frame: str) -> None:
    peer = await connected()

    await peer.socket.send(frame)

    assert await peer.closed() == (3501, "bad request")


@pytest.mark.parametrize(
    "frame", ['{"id":1,"subscribe":{"channel":"kept:1"}}', '{"send":{"data":1}}', "{}", '{"id":1,"refresh":{}}']
)
async def test_a_connection_begins_with_connect(open_socket: Open, frame: str) -> None:
    peer = await open_socket()

    await peer.socket.send(frame)

    assert await peer.closed() == (3501, "bad request")


async def test_after_a_refused_connect_nothing_is_possible(open_socket: Open) -> None:
    peer = await open_socket()
    with pytest.raises(Refused) as refused:
        await peer.command("connect", token=token(sub="1", exp=1))

    await peer.socket.send('{"id":2,"subscribe":{"channel":"kept:1"}}')

    assert refused.value.code == 109
    assert await peer.closed() == (3501, "bad request")


async def test_a_pong_is_taken_once_for_each_ping(connected: Open, open_socket: Open) -> None:
    peer = await connected(silent=True)
    peer._reading.cancel()
    assert json.loads(await asyncio.wait_for(peer.socket.recv(), TIMEOUT_SECONDS)) == {}

    await peer.socket.send("{}")
    await peer.socket.send("{}")

    assert await peer.closed() == (3501, "bad request")


async def test_what_nobody_takes_ends_the_connection(connected: Open) -> None:
    peer = await connected()

    await peer.socket.send('{"send":{"data":{}}}')

    assert await peer.closed() == (3508, "not available")


async def test_a_message_above_the_limit_ends_the_connection(connected: Open) -> None:
    peer = await connected()

    with suppress(websockets.ConnectionClosed):
        await peer.socket.send("x" * (MOST_BYTES + 1))

    assert (await peer.closed())[0] == 1009


async def test_commands_that_cannot_be_done_are_answered(connected: Open) -> None:
    peer, topic = await connected(), unique("kept")
    asked: list[tuple[int, str, dict[str, Any]]] = [
        (107, "subscribe", {"channel": "kept:" + "x" * 300}),
        (102, "subscribe", {"channel": "nowhere:1"}),
        (105, "subscribe", {"channel": topic}),
        (103, "publish", {"channel": unique("kept"), "data": 1}),
        (108, "presence", {"channel": topic}),
        (108, "rpc", {"method": "no.such.method"}),
    ]
    await peer.command("subscribe", channel=topic)

    for code, method, request in asked:
        with pytest.raises(Refused) as refused:
            await peer.command(method, **request)
        assert refused.value.code == code

    assert await peer.command("unsubscribe", channel=unique("kept")) == {}


# Who keeps the hub waiting.


async def test_who_does_not_connect_is_disconnected(open_socket: Open) -> None:
    peer = await open_socket()

    assert await peer.closed() == (3502, "stale")


async def test_who_does_not_answer_pings_is_disconnected(connected: Open) -> None:
    peer = await connected(silent=True)

    assert await peer.closed() == (3012, "no pong")


async def test_a_connection_that_expired_ends(connected: Open) -> None:
    peer = await connected(sub="1", exp=time.time() + 1.5)

    assert await peer.closed() == (3005, "connection expired")


async def test_a_connection_lives_on_with_a_new_token(connected: Open) -> None:
    peer = await connected(sub="1", exp=time.time() + 2)

    result = await peer.command("refresh", token=token(sub="1", exp=time.time() + 60))
    await asyncio.sleep(4)

    assert (result["expires"], 59 <= result["ttl"] <= 60) == (True, True)
    await peer.command("subscribe", channel=unique("kept"))


async def test_a_connection_is_prolonged_for_its_user_alone(connected: Open) -> None:
    peer = await connected(sub="1", exp=time.time() + 60)

    await peer.socket.send(json.dumps({"id": 9, "refresh": {"token": token(sub="2")}}))

    assert await peer.closed() == (3500, "invalid token")


async def test_a_subscription_that_expired_ends_and_others_go_on(connected: Open, api: Api) -> None:
    peer, expiring, prolonged = await connected(sub="1"), unique("kept"), unique("kept")
    for topic in (expiring, prolonged):
        soon = token(sub="1", channel=topic, exp=time.time() + 1.5)
        assert (await peer.command("subscribe", channel=topic, token=soon))["expires"] is True

    later = token(sub="1", channel=prolonged, exp=time.time() + 60)
    result = await peer.command("sub_refresh", channel=prolonged, token=later)
    ended = await peer.push()
    await api("publish", channel=prolonged, data="still here")

    assert (result["expires"], 59 <= result["ttl"] <= 60) == (True, True)
    assert ended == {"channel": expiring, "unsubscribe": {"code": 2501, "reason": "subscription expired"}}
    assert [found["data"] for found in await peer.publications(1)] == ["still here"]


async def test_a_subscription_of_the_server_that_expired_ends_the_connection(connected: Open, api: Api) -> None:
    user = uuid.uuid4().hex
    peer = await connected(sub=user)

    await api("subscribe", user=user, channel=unique("kept"), expire_at=int(time.time()) + 1)

    assert await peer.closed() == (3006, "subscription expired")


async def test_who_takes_nothing_is_disconnected_and_the_others_are_served(
    connected: Open, api: Api, metric: Metric
) -> None:
    topic, slow_ones = unique("kept"), 'hub_disconnects_total{code="3008"}'
    slow, quick = await connected(silent=True), await connected()
    for peer in (slow, quick):
        await peer.command("subscribe", channel=topic)
    slow._reading.cancel()
    slow.socket.transport.pause_reading()
    before = await metric(slow_ones)

    for _ in range(30):
        await api("publish", channel=topic, data="x" * 1_000_000)

    assert len(await quick.publications(30)) == 30
    assert await metric(slow_ones) == before + 1
    slow.socket.transport.abort()


# How much a connection may have.


async def test_one_connection_has_as_many_topics_as_the_limit_allows(connected: Open, api: Api) -> None:
    peer = await connected()
    topics = [unique("kept") for _ in range(MOST_TOPICS)]

    # In one frame, as the SDKs send what was subscribed before they connected.
    replies = await peer.commands(*({"subscribe": {"channel": topic}} for topic in topics))
    await api("broadcast", channels=topics, data="to all")
    pushes = [await peer.push() for _ in topics]
    with pytest.raises(Refused) as refused:
        await peer.command("subscribe", channel=unique("kept"))
    for start in range(0, MOST_TOPICS, 500):
        await peer.commands(*({"unsubscribe": {"channel": topic}} for topic in topics[start : start + 500]))

    assert all("subscribe" in reply for reply in replies)
    assert sorted(push["channel"] for push in pushes) == sorted(topics)
    assert refused.value.code == 106
    assert peer.pushes.empty()


async def test_a_token_for_too_many_topics_opens_nothing(open_socket: Open) -> None:
    peer = await open_socket()
    topics = [f"kept:{number}" for number in range(MOST_TOPICS + 1)]

    await peer.socket.send(json.dumps({"id": 1, "connect": {"token": token(sub="", channels=topics)}}))

    assert await peer.closed() == (3505, "channel limit")


@pytest.mark.parametrize("size", [1_024, 65_535, 65_536, 262_144, 1_048_576])
async def test_large_payloads_arrive_whole(connected: Open, size: int) -> None:
    topic, text = unique("kept"), "".join(random.choices('abcß𝄞"\\', k=size // 4))
    author, reader = await connected(), await connected()
    for peer in (author, reader):
        await peer.command("subscribe", channel=topic)

    await author.command("publish", channel=topic, data=text)

    for peer in (author, reader):
        assert [found["data"] for found in await peer.publications(1)] == [text]
    assert (await reader.command("history", channel=topic, limit=1))["publications"][0]["data"] == text


# Many at once.


async def test_everybody_gets_everything_once_and_in_order(connected: Open) -> None:
    topic = unique("kept")
    peers = await asyncio.gather(*(connected() for _ in range(20)))
    await asyncio.gather(*(peer.command("subscribe", channel=topic) for peer in peers))

    await asyncio.gather(
        *(
            peer.command("publish", channel=topic, data=[index, n])
            for index, peer in enumerate(peers)
            for n in range(10)
        )
    )

    streams = [await peer.publications(200) for peer in peers]
    assert [found["offset"] for found in streams[0]] == list(range(1, 201))
    assert all(stream == streams[0] for stream in streams)
    assert sorted(found["data"] for found in streams[0]) == sorted([index, n] for index in range(20) for n in range(10))
    assert all(peer.pushes.empty() for peer in peers)


async def test_publications_of_many_have_offsets_without_holes(connected: Open, api: Api) -> None:
    topic = unique("kept")
    peer = await connected()
    await peer.command("subscribe", channel=topic)

    over_http = [api("publish", channel=topic, data=number) for number in range(100)]
    over_socket = [peer.command("publish", channel=topic, data=number) for number in range(100, 200)]
    results = await asyncio.gather(*over_http, *over_socket)

    assert len({result["offset"] for result in results[:100]}) == 100
    stream = await peer.publications(200)
    assert [found["offset"] for found in stream] == list(range(1, 201))
    assert sorted(found["data"] for found in stream) == list(range(200))


async def test_of_racing_repetitions_one_is_published(connected: Open, api: Api) -> None:
    topic = unique("kept")
    peer = await connected()
    await peer.command("subscribe", channel=topic)

    results = await asyncio.gather(
        *(api("publish", channel=topic, data=n, idempotency_key="the same") for n in range(20))
    )
    await api("publish", channel=topic, data="end")

    assert [(result["offset"], result["epoch"]) for result in results] == [(1, results[0]["epoch"])] * 20
    assert [found["offset"] for found in await peer.publications(2)] == [1, 2]


async def test_commands_of_one_connection_run_side_by_side(connected: Open) -> None:
    peer, topic = await connected(), unique("room")
    await peer.command("subscribe", channel=topic)

    kinds: list[tuple[str, dict[str, Any]]] = [
        ("publish", {"data": 1}),
        ("history", {"limit": -1}),
        ("presence", {}),
        ("presence_stats", {}),
    ]
    replies = await peer.commands(*({method: {"channel": topic, **rest}} for _ in range(50) for method, rest in kinds))

    for (method, _), reply in zip(kinds * 50, replies, strict=True):
        assert method in reply
    offsets = [reply["history"]["offset"] for reply in replies if "history" in reply]
    assert offsets == sorted(offsets)
    pushes = [await peer.push() for _ in range(51)]
    assert [push["pub"]["offset"] for push in pushes if "pub" in push] == list(range(1, 51))


async def test_every_connection_of_a_user_is_subscribed_by_the_server(connected: Open, api: Api) -> None:
    user, topic = uuid.uuid4().hex, unique("kept")
    peers = await asyncio.gather(*(connected(sub=user) for _ in range(10)))

    await api("subscribe", user=user, channel=topic)
    subscribed = [await peer.push() for peer in peers]
    await api("publish", channel=topic, data="for all of you")
    received = [await peer.publications(1) for peer in peers]
    await api("unsubscribe", user=user, channel=topic)
    ended = [await peer.push() for peer in peers]

    assert {push["channel"] for push in subscribed} == {topic}
    assert {found["data"] for [found] in received} == {"for all of you"}
    assert ended == [{"channel": topic, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}] * 10


# Coming and going.


async def test_who_is_subscribed_is_present_at_once(connected: Open) -> None:
    peer, topic = await connected(), unique("room")

    _, stats = await peer.commands({"subscribe": {"channel": topic}}, {"presence_stats": {"channel": topic}})

    assert stats["presence_stats"] == {"num_clients": 1, "num_users": 1}


async def test_zeros_are_told_where_the_sdks_expect_them(connected: Open) -> None:
    peer, topic = await connected(), unique("room")

    history = await peer.command("history", channel=topic)
    presence = await peer.command("presence", channel=topic)
    stats = await peer.command("presence_stats", channel=topic)
    await peer.command("subscribe", channel=topic)
    joined = (await peer.push())["join"]["info"]
    members = (await peer.command("presence", channel=topic))["presence"]

    assert history == {"publications": [], "offset": 0, "epoch": history["epoch"]}
    assert (presence, stats) == ({"presence": {}}, {"num_clients": 0, "num_users": 0})
    assert joined == {"user": "", "client": joined["client"]}
    assert members == {joined["client"]: joined}


async def test_nothing_arrives_after_an_unsubscribe_was_sent(connected: Open, api: Api) -> None:
    peer, topic = await connected(), unique("kept")

    async def publish() -> None:
        for number in range(100):
            await api("publish", channel=topic, data=number)

    publishing = asyncio.create_task(publish())
    epoch, offset = "", 0
    while not publishing.done() or offset < 100:
        again = {"recover": True, "epoch": epoch, "offset": offset} if epoch else {}
        result = await peer.command("subscribe", channel=topic, **again)
        epoch = result["epoch"]
        offset = result["publications"][-1]["offset"] if result.get("publications") else result.get("offset", 0)
        if again:
            assert result["recovered"] is True
        await peer.command("unsubscribe", channel=topic)
        while not peer.pushes.empty():
            pushed = peer.pushes.get_nowait()["pub"]["offset"]
            assert pushed == offset + 1
            offset = pushed
        await asyncio.sleep(0)
    await publishing

    assert offset == 100
    assert peer.pushes.empty()


async def test_subscribing_and_unsubscribing_may_race(connected: Open) -> None:
    peer, topic = await connected(), unique("room")
    commands = [{method: {"channel": topic}} for _ in range(50) for method in ("subscribe", "unsubscribe")]
    random.Random(4).shuffle(commands)

    replies = await peer.commands(*commands)
    await peer.command("unsubscribe", channel=topic)
    result = await peer.command("subscribe", channel=topic)

    assert {reply["error"]["code"] for reply in replies if "error" in reply} <= {105, 107}
    assert "recovered" not in result
    assert (await peer.command("presence_stats", channel=topic))["num_clients"] == 1


async def test_a_socket_may_go_while_it_subscribes(connected: Open, api: Api, metric: Metric) -> None:
    topic, before = unique("room"), await metric("hub_connections{")

    for _ in range(30):
        peer = await connected()
        await peer.socket.send(json.dumps({"id": 2, "subscribe": {"channel": topic}}))
        peer.socket.transport.abort()

    async def nobody_is_left() -> bool:
        present = await api("presence_stats", channel=topic)
        return await metric("hub_connections{") == before and present == {"num_clients": 0, "num_users": 0}

    await until(nobody_is_left)


async def test_many_connections_come_and_go(connected: Open, metric: Metric) -> None:
    async def counts() -> tuple[float, float]:
        return await metric("hub_connections{"), await metric("hub_subscriptions{")

    topic, before = unique("room"), await counts()

    for _ in range(5):
        peers = await asyncio.gather(*(connected(sub="1") for _ in range(40)))
        await asyncio.gather(*(peer.command("subscribe", channel=topic) for peer in peers))
        assert (await peers[0].command("presence_stats", channel=topic))["num_clients"] >= 40
        await asyncio.gather(*(peer.socket.close() for peer in peers))

    async def all_are_gone() -> bool:
        return await counts() == before

    await until(all_are_gone)


# Recovering.


async def test_a_position_that_is_gone_is_refused_to_those_who_ask_for_that(connected: Open, api: Api) -> None:
    peer, topic = await connected(), unique("short")
    for number in range(5):
        await api("publish", channel=topic, data=number)
    position = await api("history", channel=topic)
    gone = {"recover": True, "offset": 1, "epoch": position["epoch"]}

    with pytest.raises(Refused) as refused:
        await peer.command("subscribe", channel=topic, flag=2, **gone)
    told = await peer.command("subscribe", channel=topic, **gone)

    assert refused.value.code == 112
    assert (told["was_recovering"], told.get("recovered"), told["offset"]) == (True, None, 5)
    assert "publications" not in told


async def test_a_cache_gives_the_newest_event_alone(connected: Open, api: Api) -> None:
    topic = unique("cache")
    for number in range(1, 6):
        await api("publish", channel=topic, data=number)
    peer = await connected()

    first = await peer.command("subscribe", channel=topic, recover=True)
    await peer.command("unsubscribe", channel=topic)
    again = await peer.command("subscribe", channel=topic, recover=True, offset=5, epoch=first["epoch"])
    await api("publish", channel=topic, data=6)

    assert (first["recovered"], [found["data"] for found in first["publications"]]) == (True, [5])
    assert (again["recovered"], again.get("publications", [])) == (True, [])
    assert [found["data"] for found in await peer.publications(1)] == [6]


async def test_deltas_make_what_was_published(connected: Open, api: Api) -> None:
    topic, chosen = unique("delta"), random.Random(7)
    whole, peer = await connected(), await connected()
    await whole.command("subscribe", channel=topic)
    result = await peer.command("subscribe", channel=topic, delta="fossil")
    value: list[Any] = [{"n": n, "text": "ab ß𝄞"} for n in range(20)]
    for _ in range(60):
        change = chosen.randrange(4)
        if change == 0:
            value = value[::-1]
        elif change == 1:
            value = [*value, chosen.random()][-30:]
        elif change == 2:
            value = [*value[:10], "x" * chosen.randrange(50), *value[10:]]
        await api("publish", channel=topic, data=value)

    expected = await whole.publications(60)
    texts: list[bytes] = []
    deltas = 0
    for found in await peer.publications(60):
        if found.get("delta"):
            deltas += 1
            texts.append(apply_delta(texts[-1], found["data"].encode()))
        else:
            texts.append(found["data"].encode())

    assert result["delta"] is True
    assert [json.loads(text) for text in texts] == [found["data"] for found in expected]
    assert deltas > 50


async def test_a_storm_of_reconnects_leaves_no_hole_and_repeats_nothing(connected: Open, api: Api) -> None:
    topic, total = unique("kept"), 200

    async def follow(index: int) -> list[int]:
        chosen, offsets, epoch = random.Random(index), list[int](), ""
        while len(offsets) < total:
            peer = await connected()
            again = {"recover": True, "offset": len(offsets), "epoch": epoch} if epoch else {}
            result = await peer.command("subscribe", channel=topic, **again)
            epoch = result["epoch"]
            assert result.get("recovered", False) is bool(again)
            offsets += [found["offset"] for found in result.get("publications", [])]
            wanted = min(total, len(offsets) + chosen.randrange(40))
            while len(offsets) < wanted:
                offsets.append((await peer.push())["pub"]["offset"])
            peer.socket.transport.abort()
        return offsets

    following = [asyncio.create_task(follow(index)) for index in range(15)]

    async def all_follow() -> bool:
        channels = (await api("channels", pattern=topic))["channels"]
        return bool(channels) and channels[topic]["num_clients"] == len(following)

    await until(all_follow)
    for number in range(total):
        await api("publish", channel=topic, data=number)

    for offsets in await asyncio.gather(*following):
        assert offsets == list(range(1, total + 1))


# The last scenario of this file.


async def test_nothing_is_left_of_all_this(patient_hub: Hub, api: Api, metric: Metric) -> None:
    async def nothing_is_left() -> bool:
        (node,) = (await api("info"))["nodes"]
        left = [node["num_clients"], node["num_users"], node["num_channels"]]
        left += [await metric("hub_connections{"), await metric("hub_subscriptions{")]
        return left == [0, 0, 0, 0, 0] and (await api("channels"))["channels"] == {}

    await until(nothing_is_left)

    assert "Traceback" not in patient_hub.output
