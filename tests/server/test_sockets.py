"""A running hub and real WebSocket clients."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import urlencode

import httpx
import jwt
import pytest
import websockets
from centrifuge import Client, ClientEventHandler, PublicationContext, SubscriptionEventHandler
from django.contrib.auth.models import User
from pytest_django import Settings
from websockets.asyncio.client import ClientConnection, connect

from notifications.delivery.tokens import connection_token
from tests.conftest import API_KEY, TOKEN_SECRET
from tests.servers import Hub

ids = count(1)
topics = (f"open:sockets-{number}" for number in ids)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 10))
    return message


async def closed(socket: ClientConnection) -> tuple[int | None, str]:
    """The code and reason with which the hub closes a socket."""
    with pytest.raises(websockets.ConnectionClosed) as closing:
        while True:
            await asyncio.wait_for(socket.recv(), 10)
    assert closing.value.rcvd is not None
    return closing.value.rcvd.code, closing.value.rcvd.reason


@asynccontextmanager
async def sdk_socket(hub: Hub, *commands: dict[str, Any], **options: Any) -> AsyncIterator[ClientConnection]:
    """A socket on which connect, and then the commands, were sent in one frame; connect is answered."""
    async with connect(f"ws://{hub.address}/connection/websocket", **options) as socket:
        sent = [{"connect": {}}, *commands]
        await socket.send(
            "\n".join(json.dumps({"id": number, **sent[number - 1]}) for number in range(1, len(sent) + 1))
        )
        assert "connect" in await receive(socket)
        yield socket


async def test_two_sockets_get_the_same_event(hub: Hub) -> None:
    topic = next(topics)
    subscribe = {"subscribe": {"channel": topic}}
    async with sdk_socket(hub, subscribe) as first, sdk_socket(hub, subscribe) as second:
        assert (await receive(first))["id"] == (await receive(second))["id"] == 2

        await first.send(json.dumps({"id": 3, "publish": {"channel": topic, "data": {"text": "schön"}}}))
        got = [await receive(first), await receive(first)]
        expected = await receive(second)

    assert {"id": 3, "publish": {}} in got
    assert expected in got
    assert expected["push"]["pub"]["data"] == {"text": "schön"}


async def test_a_reconnecting_client_gets_what_it_missed(hub: Hub) -> None:
    topic = next(topics)
    async with sdk_socket(hub, {"subscribe": {"channel": topic}}) as socket:
        epoch = (await receive(socket))["subscribe"]["epoch"]
    for number in range(3):
        await publish(hub, topic, number)

    again = {"subscribe": {"channel": topic, "recover": True, "epoch": epoch, "offset": 1}}
    async with sdk_socket(hub, again) as socket:
        result = (await receive(socket))["subscribe"]

    assert (result["recovered"], [found["data"] for found in result["publications"]]) == (True, [1, 2])


async def publish(hub: Hub, topic: str, data: object) -> None:
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        answer = await client.post(f"{hub.url}/api/publish", json={"channel": topic, "data": data})
        assert "result" in answer.json(), answer.text


class Recorder(SubscriptionEventHandler, ClientEventHandler):
    """Keeps what an unmodified SDK tells of a subscription."""

    def __init__(self) -> None:
        self.publications: asyncio.Queue[PublicationContext] = asyncio.Queue()

    async def on_publication(self, context: PublicationContext) -> None:
        self.publications.put_nowait(context)


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "42", "exp": time.time() + 60, **claims}, TOKEN_SECRET, algorithm="HS256")


async def test_the_python_sdk_works_unmodified(hub: Hub) -> None:
    topic, recorder = next(topics), Recorder()
    client = Client(f"ws://{hub.address}/connection/websocket", token=token(info={"name": "Ana"}))
    subscription = client.new_subscription(topic, events=recorder)
    await client.connect()
    await subscription.subscribe()
    await asyncio.wait_for(subscription.ready(), 10)

    await subscription.publish({"hello": 1})
    publication = await asyncio.wait_for(recorder.publications.get(), 10)
    history = await subscription.history(limit=10)
    presence = await subscription.presence()
    await client.disconnect()

    assert publication.pub.data == {"hello": 1}
    assert publication.pub.info is not None
    assert (publication.pub.info.user, publication.pub.info.conn_info) == ("42", {"name": "Ana"})
    assert [found.data for found in history.publications] == [{"hello": 1}]
    assert [info.user for info in presence.clients.values()] == ["42"]


@pytest.mark.parametrize(
    ("claims", "secret"),
    [({}, "another secret, long enough to be one"), ({"channels": "no list"}, TOKEN_SECRET)],
    ids=["signature", "claims"],
)
async def test_a_wrong_token_closes_the_socket(hub: Hub, claims: dict[str, Any], secret: str) -> None:
    wrong = jwt.encode({"sub": "42", **claims}, secret, algorithm="HS256")
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send(json.dumps({"id": 1, "connect": {"token": wrong}}))

        assert await closed(socket) == (3500, "invalid token")


async def test_a_token_that_the_hub_signed_opens_a_session(
    hub: Hub, settings: Settings, django_user_model: type[User]
) -> None:
    settings.HUB_TOKEN_SECRET = TOKEN_SECRET
    signed = connection_token(django_user_model(pk=4_711, username="carla"), seconds=60)
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send(json.dumps({"id": 1, "connect": {"token": signed}}))
        result = (await receive(socket))["connect"]

    assert (result["expires"], list(result["subs"])) == (True, ["#4711"])
    assert 58 <= result["ttl"] <= 60


async def test_an_expired_token_is_an_error_that_asks_for_a_new_one(hub: Hub) -> None:
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send(json.dumps({"id": 1, "connect": {"token": token(exp=time.time() - 5)}}))

        assert (await receive(socket))["error"] == {"code": 109, "message": "token expired"}


@pytest.mark.parametrize("frame", ["garbage", "[1]", '{"id":1,"subscribe":{"channel":"x"}}', "{}", '{"connect":{}}'])
async def test_a_malformed_frame_closes_the_socket(hub: Hub, frame: str) -> None:
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send(frame)

        assert await closed(socket) == (3501, "bad request")


async def test_a_message_that_is_too_large_closes_the_socket(hub: Hub) -> None:
    async with sdk_socket(hub) as socket:
        await socket.send("x" * 70_000)

        assert (await closed(socket))[0] == 1009


async def test_a_binary_frame_is_the_wrong_protocol(hub: Hub) -> None:
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        await socket.send(b"{}")

        assert await closed(socket) == (3506, "inappropriate protocol")


async def test_an_empty_subprotocol_header_is_accepted(hub: Hub) -> None:
    async with sdk_socket(hub, additional_headers={"Sec-WebSocket-Protocol": ""}):
        pass


async def test_cookies_from_a_foreign_origin_are_refused(hub: Hub) -> None:
    cookie = {"Cookie": f"sessionid={hub.sign_in()}"}
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(
            f"ws://{hub.address}/connection/websocket", origin="http://evil.example", additional_headers=cookie
        )

    assert refused.value.response.status_code == 403
    assert b"HUB_ALLOWED_ORIGINS" in (refused.value.response.body or b"")
    assert "http://evil.example" in hub.output


async def test_a_signed_in_page_is_subscribed_to_its_user_by_the_server(hub: Hub) -> None:
    cookie = {"Cookie": f"sessionid={hub.sign_in('ana')}"}
    async with connect(f"ws://{hub.address}/connection/websocket", origin=hub.url, additional_headers=cookie) as socket:
        await socket.send('{"id":1,"connect":{}}')
        subscribed = (await receive(socket))["connect"]["subs"]
        (topic,) = subscribed
        await publish(hub, topic, {"title": "For you"})

        push = (await receive(socket))["push"]

    assert topic.startswith("#")
    assert (push["channel"], push["pub"]["data"]) == (topic, {"title": "For you"})


async def test_the_tutorials_plain_protocol(hub: Hub) -> None:
    headers = {"Cookie": f"sessionid={hub.sign_in('bob')}"}
    plain = [
        connect(f"ws://{hub.address}{path}", origin=hub.url, additional_headers=headers)
        for path in ("/ws/socket-server/", "/ws/chat/lobby/")
    ]
    async with plain[0] as first, plain[1] as second:
        assert (await receive(first))["type"] == (await receive(second))["type"] == "connection_established"

        await first.send('{"message": "hi"}')
        got = [await receive(first), await receive(second)]
        await first.send("[]")
        refused = await receive(first)
        await first.send(b'{"message": "\xff"}')
        assert (await receive(first))["type"] == "error"

    assert got[0] == got[1]
    assert {name: got[0][name] for name in ("type", "message", "author")} == {
        "type": "chat",
        "message": "hi",
        "author": "bob",
    }
    assert refused["type"] == "error"


async def test_a_visitor_may_not_chat(hub: Hub) -> None:
    async with connect(f"ws://{hub.address}/ws/chat/lobby/", origin=hub.url) as socket:
        assert await closed(socket) == (3507, "permission denied")


async def test_logging_out_closes_the_sockets_of_the_login(hub: Hub) -> None:
    key = hub.sign_in("ana")
    async with connect(
        f"ws://{hub.address}/connection/websocket", origin=hub.url, additional_headers={"Cookie": f"sessionid={key}"}
    ) as socket:
        await socket.send('{"id":1,"connect":{}}')
        await receive(socket)
        async with httpx.AsyncClient(base_url=hub.url, cookies={"sessionid": key}) as client:
            await client.get("/")
            form = {"csrfmiddlewaretoken": client.cookies["csrftoken"]}
            assert (await client.post("/accounts/logout/", data=form)).status_code == 302

        assert await closed(socket) == (3503, "force disconnect")


async def events_of(hub: Hub, query: str, *, number: int, **headers: str) -> list[dict[str, str]]:
    """The first so many blocks with data that a stream sends."""
    found: list[dict[str, str]] = []
    async with (
        httpx.AsyncClient(timeout=10) as client,
        client.stream("GET", f"{hub.url}/events?{query}", headers=headers) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        block: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                block[name] = value
                continue
            if "data" in block:
                found.append(block)
            if len(found) == number:
                break
            block = {}
    return found


async def test_an_event_stream_resumes_from_its_last_id(hub: Hub) -> None:
    topic = next(topics)
    for number in range(3):
        await publish(hub, topic, number)
    first = await events_of(hub, f"topic={topic}&since=:0", number=2)

    resumed = await events_of(hub, f"topic={topic}", number=3, **{"Last-Event-ID": first[1]["id"]})

    assert (first[1]["event"], first[1]["data"]) == ("message", "0")
    assert resumed[0] == {"event": "hub.resume", "data": '{"complete":true}'}
    assert [event["data"] for event in resumed[1:]] == ["1", "2"]


async def test_one_id_resumes_several_topics(hub: Hub) -> None:
    one, two = next(topics), next(topics)
    both = {"topic": [one, two]}
    await publish(hub, one, "first")
    begun = urlencode({**both, "since": urlencode({one: ":0", two: ":0"})}, doseq=True)
    cursor = (await events_of(hub, begun, number=2))[1]["id"]

    await publish(hub, two, "second")
    resumed = await events_of(hub, urlencode(both, doseq=True), number=2, **{"Last-Event-ID": cursor})

    assert [event["data"] for event in resumed] == ['{"complete":true}', '"second"']


@pytest.mark.parametrize("last", ["%%%garbage", "open%3Aelse=x%3A1"])
async def test_an_id_that_cannot_be_resumed_from_is_told(hub: Hub, last: str) -> None:
    resumed = await events_of(hub, f"topic={next(topics)}", number=1, **{"Last-Event-ID": last})

    assert resumed == [{"event": "hub.resume", "data": '{"complete":false}'}]


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("topic=nobody:declared", 404), ("topic=activity:staff", 403)]
)
async def test_a_stream_that_cannot_be_is_a_problem(hub: Hub, query: str, status: int) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{hub.url}/events?{query}")

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


async def test_an_unknown_socket_path_is_not_found(hub: Hub) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(f"ws://{hub.address}/nowhere")

    assert refused.value.response.status_code == 404
