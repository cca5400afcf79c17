"""The client library `cent`, unmodified, against a real server process."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cent
import pytest
from cent import AsyncClient, CentApiResponseError, CentTransportError, CentUnauthorizedError, Client
from cent.dto import ChannelInfoResult
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import API_KEY
from tests.servers import Hub

#: Calls a method of either client of the library.
Call = Callable[[Any], Awaitable[Any]]


@pytest.fixture(params=["Client", "AsyncClient"])
async def call(request: pytest.FixtureRequest, hub: Hub) -> AsyncIterator[Call]:
    """Sends a request with the client that asks and the client that awaits."""

    def method_of(client: Any, asked: Any) -> Any:
        return getattr(client, asked.__api_method__)

    if request.param == "AsyncClient":
        async with AsyncClient(f"{hub.url}/api", API_KEY) as client:
            yield lambda asked: method_of(client, asked)(asked)
    else:
        with Client(f"{hub.url}/api", API_KEY) as client:
            yield lambda asked: asyncio.to_thread(method_of(client, asked), asked)


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"open:{uuid.uuid4().hex}"


class Connected:
    """A connected client of the Centrifuge protocol: a visitor."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.id = ""
        self._lines: list[str] = []

    async def command(self, method: str, **request: Any) -> dict[str, Any]:
        """Send a command and return its result; pushes before it are passed over."""
        await self.socket.send(json.dumps({"id": 1, method: request}))
        while (reply := await self._next()).get("id") != 1:
            pass
        result: dict[str, Any] = reply[method]
        return result

    async def next_push(self, kind: str) -> dict[str, Any]:
        """The next push of a kind; others before it are passed over."""
        while kind not in (push := (await self._next()).get("push", {})):
            pass
        found: dict[str, Any] = push
        return found

    async def _next(self) -> dict[str, Any]:
        while not self._lines:
            frame = await asyncio.wait_for(self.socket.recv(), 10)
            self._lines = str(frame).strip("\n").split("\n")
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        return message

    async def closed(self) -> tuple[int, str]:
        """Code and reason with which the hub closed it."""
        await asyncio.wait_for(self.socket.wait_closed(), 10)
        return self.socket.close_code or 0, self.socket.close_reason or ""


@pytest.fixture
async def visitor(hub: Hub) -> AsyncIterator[Connected]:
    async with connect(f"ws://{hub.address}/connection/websocket") as socket:
        client = Connected(socket)
        client.id = (await client.command("connect"))["client"]
        yield client


async def test_publish(call: Call, topic: str, visitor: Connected) -> None:
    await visitor.command("subscribe", channel=topic)
    request = cent.PublishRequest(
        channel=topic,
        data={"n": 1},
        skip_history=False,
        tags={"tag": "value"},
        idempotency_key="once",
    )

    first, again = await call(request), await call(request)

    assert isinstance(first, cent.PublishResult)
    assert (first.offset, again.offset, again.epoch) == (1, 1, first.epoch)
    publication = (await visitor.next_push("pub"))["pub"]
    assert (publication["data"], publication["tags"]) == ({"n": 1}, {"tag": "value"})


async def test_publish_with_fields_that_are_newer_than_the_library(call: Call, topic: str) -> None:
    def request(version: int, **more: Any) -> cent.PublishRequest:
        return cent.PublishRequest(channel=topic, data=version, version=version, version_epoch="a", **more)

    offsets = [(await call(request(version, delta=True, unheard_of=[1]))).offset for version in (2, 1, 3)]

    assert offsets == [1, 1, 2]


async def test_publish_of_bytes_that_are_json(call: Call, topic: str) -> None:
    encoded = base64.b64encode(b'{"n": 2}').decode()

    await call(cent.PublishRequest(channel=topic, data="not this", b64data=encoded))

    (publication,) = (await call(cent.HistoryRequest(channel=topic, limit=1))).publications
    assert publication.data == {"n": 2}


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"channel": "undeclared:1"}, 102, "unknown channel"),
        ({"channel": ""}, 107, "bad request: Expected `str` of length >= 1 - at `$.channel`"),
        ({"channel": "chat:a", "data": 5}, 107, "bad request: data of 'chat.message' on 'chat:a'"),
    ],
)
async def test_an_error_is_raised(call: Call, fields: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(CentApiResponseError) as error:
        await call(cent.PublishRequest(**{"data": 1, **fields}))

    assert error.value.code == code
    assert error.value.message.startswith(message)


async def test_broadcast(call: Call, topic: str) -> None:
    request = cent.BroadcastRequest(
        channels=[f"{topic}a", "undeclared:1", f"{topic}b"],
        data={"n": 1},
        skip_history=False,
        tags={"tag": "value"},
        idempotency_key="once",
    )

    responses = (await call(request)).responses

    assert [response.result and response.result.offset for response in responses] == [1, None, 1]
    assert (responses[1].error.code, responses[1].error.message) == (102, "unknown channel")


async def test_history(call: Call, topic: str) -> None:
    for number in range(5):
        await call(cent.PublishRequest(channel=topic, data=number, tags={"n": str(number)}))

    newest = await call(cent.HistoryRequest(channel=topic, limit=2, reverse=True))
    since = cent.StreamPosition(offset=3, epoch=newest.epoch)
    later = await call(cent.HistoryRequest(channel=topic, limit=10, since=since))
    position = await call(cent.HistoryRequest(channel=topic))

    assert newest.offset == 5
    assert [(publication.offset, publication.data) for publication in newest.publications] == [(5, 4), (4, 3)]
    assert [publication.tags for publication in later.publications] == [{"n": "3"}, {"n": "4"}]
    assert (position.publications, position.offset, position.epoch) == ([], 5, newest.epoch)


async def test_history_of_another_epoch(call: Call, topic: str) -> None:
    await call(cent.PublishRequest(channel=topic, data=1))

    with pytest.raises(CentApiResponseError) as error:
        await call(cent.HistoryRequest(channel=topic, limit=1, since=cent.StreamPosition(offset=1, epoch="gone")))

    assert error.value.code == 112


async def test_history_remove(call: Call, topic: str) -> None:
    await call(cent.PublishRequest(channel=topic, data=1))

    assert isinstance(await call(cent.HistoryRemoveRequest(channel=topic)), cent.HistoryRemoveResult)

    left = await call(cent.HistoryRequest(channel=topic, limit=10))
    assert (left.publications, left.offset) == ([], 1)


async def test_presence(call: Call, topic: str, visitor: Connected) -> None:
    await visitor.command("subscribe", channel=topic)

    presence = (await call(cent.PresenceRequest(channel=topic))).presence
    stats = await call(cent.PresenceStatsRequest(channel=topic))

    assert presence == {visitor.id: cent.ClientInfo(client=visitor.id, user="")}
    assert (stats.num_clients, stats.num_users) == (1, 1)


async def test_presence_where_nobody_is(call: Call, topic: str) -> None:
    assert (await call(cent.PresenceRequest(channel=topic))).presence == {}
    assert (await call(cent.PresenceStatsRequest(channel=topic))).num_clients == 0


async def test_channels(call: Call, topic: str, visitor: Connected) -> None:
    await visitor.command("subscribe", channel=topic)

    deadline = time.monotonic() + 10
    while not (found := (await call(cent.ChannelsRequest(pattern=f"{topic[:-1]}?"))).channels):
        assert time.monotonic() < deadline

    assert found == {topic: ChannelInfoResult(num_clients=1)}
    assert topic in (await call(cent.ChannelsRequest())).channels


async def test_info(call: Call) -> None:
    (node,) = (await call(cent.InfoRequest())).nodes

    assert node.uid
    assert node.version
    assert node.uptime >= 0


async def test_subscribe(call: Call, topic: str, visitor: Connected) -> None:
    first = await call(cent.PublishRequest(channel=topic, data=1))
    await call(cent.PublishRequest(channel=topic, data=2))
    request = cent.SubscribeRequest(
        user="",
        client=visitor.id,
        channel=topic,
        info={"role": "guest"},
        data={"welcome": True},
        recover_since=cent.StreamPosition(offset=1, epoch=first.epoch),
        override=cent.ChannelOptionsOverride(presence=cent.BoolValue(value=True)),
    )

    assert isinstance(await call(request), cent.SubscribeResult)

    push = await visitor.next_push("subscribe")
    assert (push["channel"], push["subscribe"]["data"]) == (topic, {"welcome": True})
    missed = (await visitor.next_push("pub"))["pub"]
    assert (missed["offset"], missed["data"]) == (2, 2)
    presence = (await call(cent.PresenceRequest(channel=topic))).presence
    assert presence[visitor.id].chan_info == {"role": "guest"}


async def test_unsubscribe(call: Call, topic: str, visitor: Connected) -> None:
    await visitor.command("subscribe", channel=topic)

    request = cent.UnsubscribeRequest(user="", channel=topic, client=visitor.id)
    assert isinstance(await call(request), cent.UnsubscribeResult)

    push = await visitor.next_push("unsubscribe")
    assert push == {"channel": topic, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}


async def test_disconnect(call: Call, visitor: Connected) -> None:
    told = cent.Disconnect(code=4000, reason="come back")
    kept = cent.DisconnectRequest(user="", client=visitor.id, whitelist=[visitor.id], disconnect=told)
    request = cent.DisconnectRequest(user="", client=visitor.id, disconnect=told)

    await call(kept)
    assert await visitor.command("subscribe", channel="open:1")
    assert isinstance(await call(request), cent.DisconnectResult)

    assert await visitor.closed() == (4000, "come back")


async def test_refresh(call: Call, visitor: Connected) -> None:
    later = cent.RefreshRequest(user="", client=visitor.id, expire_at=int(time.time()) + 600)
    expired = cent.RefreshRequest(user="", client=visitor.id, expired=True)

    assert isinstance(await call(later), cent.RefreshResult)
    push = await visitor.next_push("refresh")
    await call(expired)

    assert push["refresh"]["expires"] is True
    assert 590 < push["refresh"]["ttl"] <= 601
    assert await visitor.closed() == (3005, "connection expired")


async def test_who_is_not_connected_is_no_error(call: Call, topic: str) -> None:
    whom = {"user": "user", "client": "client", "session": "session"}

    for request in (
        cent.SubscribeRequest(channel=topic, recover_since=cent.StreamPosition(offset=1, epoch="1"), **whom),
        cent.UnsubscribeRequest(channel=topic, **whom),
        cent.DisconnectRequest(whitelist=["other"], disconnect=cent.Disconnect(code=4000, reason="reason"), **whom),
        cent.RefreshRequest(expire_at=1, expired=True, **whom),
    ):
        assert (await call(request)).model_dump() == {}


@pytest.mark.parametrize("parallel", [None, False, True])
async def test_batch(call: Call, topic: str, parallel: bool | None) -> None:
    requests = [
        cent.PublishRequest(channel=f"{topic}a", data="first"),
        cent.PublishRequest(channel=f"{topic}b", data="second"),
        cent.BroadcastRequest(channels=[f"{topic}c", f"{topic}d"], data="third"),
        cent.PresenceRequest(channel=f"{topic}a"),
        cent.HistoryRequest(channel=f"{topic}e", limit=1),
        cent.InfoRequest(),
        cent.DisconnectRequest(user="nobody"),
    ]

    replies = (await call(cent.BatchRequest(requests=requests, parallel=parallel))).replies

    assert [type(reply) for reply in replies] == [request.__returning__ for request in requests]
    assert (replies[0].offset, replies[1].offset) == (1, 1)
    assert [response.result.offset for response in replies[2].responses] == [1, 1]
    assert (replies[3].presence, replies[4].publications) == ({}, [])


async def test_an_empty_batch(call: Call) -> None:
    assert (await call(cent.BatchRequest(requests=[]))).replies == []


async def test_methods_of_others_do_not_exist(call: Call) -> None:
    with pytest.raises(CentTransportError) as error:
        await call(cent.BlockUserRequest(user="7"))

    assert error.value.status_code == 404


def test_a_wrong_key_is_refused(hub: Hub) -> None:
    with Client(f"{hub.url}/api", "wrong") as client, pytest.raises(CentUnauthorizedError):
        client.publish(cent.PublishRequest(channel="open:1", data=1))
