"""The Python SDK, unmodified, with both of its codecs."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import jwt
import pytest
from centrifuge import (
    Client,
    ClientEventHandler,
    ClientState,
    DeltaType,
    Filter,
    ReplyError,
    StreamPosition,
    Subscription,
    SubscriptionEventHandler,
    SubscriptionState,
    UnauthorizedError,
)

from tests.sdk.conftest import API_KEY, TOKEN_SECRET
from tests.servers import Hub

# The secret of the SDKs' own suites is a short one.
pytestmark = pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")

TIMEOUT_SECONDS = 15.0
TEXT = "long enough for the difference to be shorter than the whole of it, " * 3


class Recorder(ClientEventHandler, SubscriptionEventHandler):
    """Keeps what an SDK tells of a client or a subscription, by the name of the event."""

    def __init__(self) -> None:
        self.events: dict[str, asyncio.Queue[Any]] = {}

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def keep(context: Any) -> None:
            self._queue(name.removeprefix("on_")).put_nowait(context)

        return keep

    def _queue(self, event: str) -> asyncio.Queue[Any]:
        return self.events.setdefault(event, asyncio.Queue())

    async def next(self, event: str) -> Any:
        """The next event of a kind."""
        return await asyncio.wait_for(self._queue(event).get(), TIMEOUT_SECONDS)

    def unread(self, event: str) -> int:
        """How many of a kind came and were not read."""
        return self._queue(event).qsize()


class Side:
    """The clients of one scenario: how they are made, what they publish and get, and the hub's HTTP API."""

    def __init__(self, hub: Hub, *, binary: bool) -> None:
        self.url = f"ws://{hub.address}/connection/websocket"
        self.binary = binary
        self.clients: list[Client] = []
        self.http = httpx.AsyncClient(base_url=f"{hub.url}/api/", headers={"X-API-Key": API_KEY})

    def new_client(self, **options: Any) -> tuple[Client, Recorder]:
        """A client that is not connected yet, and what it tells."""
        events = Recorder()
        options = {"min_reconnect_delay": 0.02, "max_reconnect_delay": 0.2, **options}
        client = Client(self.url, events=events, use_protobuf=self.binary, **options)
        self.clients.append(client)
        return client, events

    async def connected(self, **options: Any) -> tuple[Client, Recorder]:
        """A client that is connected, and what it tells."""
        client, events = self.new_client(**options)
        await client.connect()
        await client.ready(TIMEOUT_SECONDS)
        return client, events

    async def subscribed(self, client: Client, topic: str, **options: Any) -> tuple[Subscription, Recorder]:
        """A subscription that is established, and what it tells."""
        events = Recorder()
        options = {"min_resubscribe_delay": 0.02, "max_resubscribe_delay": 0.2, **options}
        subscription = client.new_subscription(topic, events=events, **options)
        await subscription.subscribe()
        await subscription.ready(TIMEOUT_SECONDS)
        return subscription, events

    def pack(self, value: Any) -> Any:
        """What is published: binary clients send bytes."""
        return json.dumps(value).encode() if self.binary else value

    def unpack(self, data: Any) -> Any:
        """What was published, and `info` and `data` of other sorts: binary clients get bytes."""
        return json.loads(data) if self.binary else data

    async def take(self, events: Recorder, size: int) -> list[Any]:
        """The data of the next publications."""
        return [self.unpack((await events.next("publication")).pub.data) for _ in range(size)]

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the HTTP API."""
        answer = (await self.http.post(method, json=parameters)).json()
        assert "error" not in answer, answer
        return answer["result"]

    async def publish(self, topic: str, *values: Any, **rest: Any) -> None:
        """Publish with the HTTP API."""
        for value in values:
            await self.call("publish", channel=topic, data=value, **rest)

    async def close(self) -> None:
        """Disconnect every client."""
        for client in self.clients:
            await client.disconnect()
        await self.http.aclose()


@pytest.fixture
async def both(sdk_hub: Hub) -> AsyncIterator[list[Side]]:
    """Clients with both codecs, for what takes its time."""
    both = [Side(sdk_hub, binary=binary) for binary in (False, True)]
    yield both
    for side in both:
        await side.close()


@pytest.fixture(params=[0, 1], ids=["json", "protobuf"])
def side(both: list[Side], request: pytest.FixtureRequest) -> Side:
    """Clients with either codec."""
    found: Side = both[request.param]
    return found


def unique(namespace: str = "") -> str:
    """A name that no other scenario uses, in a namespace or in none."""
    return f"{namespace}:{uuid.uuid4().hex}" if namespace else uuid.uuid4().hex


def token(*, seconds: float | None = None, **claims: Any) -> str:
    """A token that is signed as the hub expects it."""
    expiry = {} if seconds is None else {"exp": time.time() + seconds}
    return jwt.encode({**claims, **expiry}, TOKEN_SECRET, algorithm="HS256")


def giving(*tokens: str | Callable[[], str]) -> Callable[..., Awaitable[str]]:
    """Gives tokens, one after the other and the last one again and again."""
    left = list(tokens)

    async def give(*_: str) -> str:
        found = left.pop(0) if len(left) > 1 else left[0]
        return found() if callable(found) else found

    return give


async def test_a_client_connects_and_disconnects(side: Side) -> None:
    about = {"name": "scenario", "version": "1", "data": side.pack({"a": 1})}
    client, events = side.new_client(get_token=giving(token(sub="42")), **about)

    await client.connect()
    await client.ready()
    state = client.state
    await client.disconnect()

    assert state is ClientState.CONNECTED
    assert (await events.next("connected")).client == client.client_id
    assert (await events.next("disconnected")).code == 0


async def test_a_subscription_comes_and_goes_again_and_again(side: Side) -> None:
    client, _ = await side.connected()
    subscription, events = await side.subscribed(client, unique())

    for _ in range(5):
        await subscription.unsubscribe()
        assert subscription.state is SubscriptionState.UNSUBSCRIBED
        assert (await events.next("unsubscribed")).code == 0
        await subscription.subscribe()
        await subscription.ready(TIMEOUT_SECONDS)

    assert subscription.state is SubscriptionState.SUBSCRIBED


async def test_what_a_subscription_can_do(side: Side) -> None:
    topic = unique()
    client, _ = await side.connected(get_token=giving(token(sub="42", info={"name": "Ana"})))
    subscription, events = await side.subscribed(client, topic, get_token=giving(token(sub="42", channel=topic)))

    await subscription.publish(side.pack({"input": "test"}))
    publication = (await events.next("publication")).pub
    history = await subscription.history(limit=-1)
    presence = await subscription.presence()
    stats = await subscription.presence_stats()

    assert (side.unpack(publication.data), publication.offset) == ({"input": "test"}, 1)
    assert (publication.info.user, publication.info.client) == ("42", client.client_id)
    assert side.unpack(publication.info.conn_info) == {"name": "Ana"}
    assert [side.unpack(found.data) for found in history.publications] == [{"input": "test"}]
    assert (history.offset, len(history.epoch)) == (1, 8)
    assert [found.user for found in presence.clients.values()] == ["42"]
    assert (stats.num_clients, stats.num_users) == (1, 1)


@pytest.mark.parametrize("delta", [None, DeltaType.FOSSIL])
async def test_publications_arrive_as_they_were_published(side: Side, delta: DeltaType | None) -> None:
    client, _ = await side.connected()
    subscription, events = await side.subscribed(client, unique(), delta=delta)
    values = [{"input": TEXT}, {"input": TEXT}, {"input": f"{TEXT} schön 🐘", "n": 1}, {"input": "hello"}, [TEXT], "é"]

    for value in values:
        await subscription.publish(side.pack(value))

    assert await side.take(events, len(values)) == values


async def test_joins_and_leaves_are_told(side: Side) -> None:
    topic = unique()
    watching, _ = await side.connected(token=token(sub="42"))
    _, events = await side.subscribed(watching, topic)
    other, _ = await side.connected(token=token(sub="43"))

    passing, _ = await side.subscribed(other, topic)
    joined = [(await events.next("join")).info for _ in range(2)]
    await passing.unsubscribe()
    left = (await events.next("leave")).info

    assert [info.client for info in joined] == [watching.client_id, other.client_id]
    assert (joined[1].user, left.user, left.client) == ("43", "43", other.client_id)


@pytest.mark.parametrize("delta", [None, DeltaType.FOSSIL])
async def test_a_client_gets_what_it_missed(side: Side, delta: DeltaType | None) -> None:
    topic = unique()
    client, _ = await side.connected()
    _, events = await side.subscribed(client, topic, delta=delta)
    first = await events.next("subscribed")
    await client.disconnect()
    values = [{"input": f"{TEXT} {number}"} for number in range(10)]
    await side.publish(topic, *values)

    await client.connect()
    again = await events.next("subscribed")

    assert (first.was_recovering, first.recovered) == (False, False)
    assert (again.was_recovering, again.recovered) == (True, True)
    assert await side.take(events, 10) == values
    assert events.unread("publication") == 0


async def test_a_client_is_told_that_its_position_is_gone(side: Side) -> None:
    topic = unique("smallhistory")
    client, _ = await side.connected()
    subscription, events = await side.subscribed(client, topic)
    await events.next("subscribed")
    await subscription.unsubscribe()
    await side.publish(topic, 1, 2, 3, 4)

    await subscription.subscribe()
    again = await events.next("subscribed")
    await side.publish(topic, 5)

    assert (again.was_recovering, again.recovered, again.stream_position.offset) == (True, False, 4)
    assert await side.take(events, 1) == [5]


async def test_a_client_asks_for_its_state_anew_when_its_position_is_gone(side: Side) -> None:
    topic = unique("smallhistory")
    await side.publish(topic, 0)
    positions: list[StreamPosition] = []

    async def get_state(channel: str) -> StreamPosition:
        now = await side.call("history", channel=channel, limit=0)
        positions.append(StreamPosition(offset=now["offset"], epoch=now["epoch"]))
        return positions[-1]

    client, _ = await side.connected()
    _, events = await side.subscribed(client, topic, get_state=get_state)
    await events.next("subscribed")
    await client.disconnect()
    await side.publish(topic, 1, 2, 3, 4)
    await client.connect()
    again = await events.next("subscribed")

    assert [position.offset for position in positions] == [1, 5]
    assert (again.recovered, again.stream_position.offset) == (True, 5)


async def test_a_filter_lets_through_what_has_the_right_tags(side: Side) -> None:
    topic = unique("filter")
    client, _ = await side.connected()
    wanted = Filter.all(Filter.is_in("ticker", ["AAPL", "GOOG"]), Filter.negate(Filter.gte("price", "100")))
    _, events = await side.subscribed(client, topic, tags_filter=wanted)

    for ticker, price in [("AAPL", "99"), ("AAPL", "100"), ("MSFT", "1"), ("GOOG", "9.5")]:
        await side.publish(topic, [ticker, price], tags={"ticker": ticker, "price": price})

    first, second = [(await events.next("publication")).pub for _ in range(2)]
    assert [side.unpack(found.data) for found in (first, second)] == [["AAPL", "99"], ["GOOG", "9.5"]]
    assert (first.tags, second.offset) == ({"ticker": "AAPL", "price": "99"}, 4)


async def test_history_is_read_page_by_page_and_backwards(side: Side) -> None:
    topic = unique("test")
    await side.publish(topic, *range(1, 8))
    client, _ = await side.connected()
    subscription, _ = await side.subscribed(client, topic)
    position = await subscription.history()
    since = StreamPosition(offset=3, epoch=position.epoch)

    async def offsets(**options: Any) -> list[int]:
        return [found.offset for found in (await subscription.history(**options)).publications]

    assert (position.publications, position.offset) == ([], 7)
    assert await offsets(limit=2, since=since) == [4, 5]
    assert await offsets(limit=2, since=StreamPosition(offset=7, epoch=position.epoch)) == []
    assert await offsets(limit=2, since=since, reverse=True) == [2, 1]
    assert await offsets(limit=-1) == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ReplyError) as error:
        await offsets(limit=1, since=StreamPosition(offset=0, epoch="another"))
    assert error.value.code == 112


async def test_a_wrong_token_ends_the_connection(side: Side) -> None:
    client, events = side.new_client(get_token=giving("no token"))

    await client.connect()

    assert (await events.next("disconnected")).code == 3_500
    assert client.state is ClientState.DISCONNECTED


async def test_a_wrong_subscription_token_ends_the_subscription(side: Side) -> None:
    client, _ = await side.connected(token=token(sub="42"))
    events = Recorder()
    subscription = client.new_subscription(unique(), events=events, get_token=giving("no token"))

    await subscription.subscribe()

    assert (await events.next("unsubscribed")).code == 103
    assert client.state is ClientState.CONNECTED


async def test_expired_tokens_are_replaced(side: Side) -> None:
    topic = f"${unique('private')}"
    get_token = giving(token(sub="42", seconds=-5), token(sub="42"))
    client, _ = await side.connected(get_token=get_token)
    fresh = giving(token(sub="42", channel=topic, seconds=-5), token(sub="42", channel=topic))

    subscription, _ = await side.subscribed(client, topic, get_token=fresh)

    assert subscription.state is SubscriptionState.SUBSCRIBED


async def test_who_cannot_give_another_token_is_unauthorized(side: Side) -> None:
    async def nothing() -> str:
        raise UnauthorizedError("")

    for options in ({"token": token(sub="42", seconds=-5)}, {"get_token": nothing}):
        client, events = side.new_client(**options)
        await client.connect()
        assert (await events.next("disconnected")).code == 1


async def test_connection_and_subscription_are_refreshed_before_they_end(both: list[Side]) -> None:
    await asyncio.gather(*(_is_refreshed(side) for side in both))


async def _is_refreshed(side: Side) -> None:
    topic = unique("test")
    fresh = giving(*(lambda: token(sub="42", seconds=1.4) for _ in range(2)), token(sub="42"))
    fresh_subscription = giving(
        *(lambda: token(sub="42", channel=topic, seconds=1.4) for _ in range(2)), token(sub="42", channel=topic)
    )
    client, client_events = await side.connected(get_token=fresh, max_server_ping_delay=2.0)
    _, events = await side.subscribed(client, topic, get_token=fresh_subscription)
    await asyncio.gather(client_events.next("connecting"), events.next("subscribing"))

    # Twice refreshed, often pinged, and later than what expired last would have been borne with.
    await asyncio.sleep(7)
    await side.publish(topic, "still here")

    assert await side.take(events, 1) == ["still here"]
    assert (client_events.unread("connecting"), events.unread("subscribing")) == (0, 0)


async def test_what_is_not_refreshed_ends_and_begins_anew(both: list[Side]) -> None:
    await asyncio.gather(*(_begins_anew(side) for side in both))


async def _begins_anew(side: Side) -> None:
    topic = unique("test")
    hanging = asyncio.Event()

    def give(*tokens: str) -> Callable[..., Awaitable[str]]:
        left = list(tokens)

        async def give_or_hang(*_: str) -> str:
            found = left.pop(0)
            if not found:
                await hanging.wait()
            return found

        return give_or_hang

    subscriber, _ = await side.connected()
    expiring = give(token(channel=topic, seconds=1.2), "", token(channel=topic))
    _, events = await side.subscribed(subscriber, topic, get_token=expiring)
    _, client_events = await side.connected(get_token=give(token(seconds=1.2), "", token()))
    for recorder, event in ((events, "subscribing"), (client_events, "connecting")):
        await recorder.next(event)
    for recorder, event in ((events, "subscribed"), (client_events, "connected")):
        await recorder.next(event)

    subscription_ended, connection_ended = await events.next("subscribing"), await client_events.next("connecting")
    await asyncio.gather(events.next("subscribed"), client_events.next("connected"))
    hanging.set()

    assert (subscription_ended.code, subscription_ended.reason) == (2_501, "subscription expired")
    assert (connection_ended.code, connection_ended.reason) == (3_005, "connection expired")


async def test_the_server_subscribes_a_user_to_the_personal_topic(side: Side) -> None:
    user, topic = unique(), unique()
    client, events = await side.connected(token=token(sub=user, channels=[topic]))
    contexts, first_id = [await events.next("subscribed") for _ in range(2)], client.client_id
    joined = await events.next("join")
    await side.publish(f"#{user}", "for you")
    assert await side.take(events, 1) == ["for you"]

    await client.disconnect()
    await side.publish(f"#{user}", 1, 2)
    await client.connect()

    assert {context.channel for context in contexts} == {f"#{user}", topic}
    assert (joined.channel, joined.info.client, joined.info.user) == (topic, first_id, user)
    assert await side.take(events, 2) == [1, 2]
    recovered = {context.channel: context.recovered for context in [await events.next("subscribed") for _ in range(2)]}
    assert recovered[f"#{user}"] is True


async def test_the_http_api_steers_a_client(side: Side) -> None:
    user, topic = unique(), unique("recovery")
    client, events = await side.connected(token=token(sub=user))
    await events.next("connecting")
    await events.next("subscribed")

    await side.call("subscribe", user=user, channel=topic, data={"a": 1})
    subscribed = await events.next("subscribed")
    await side.publish(topic, "hi")
    received = await side.take(events, 1)
    await side.call("unsubscribe", user=user, channel=topic)
    unsubscribed = await events.next("unsubscribed")
    await side.call("disconnect", user=user, disconnect={"code": 4_000, "reason": "come back"})
    connecting = await events.next("connecting")
    await client.ready(TIMEOUT_SECONDS)
    await side.call("disconnect", user=user, disconnect={"code": 4_500, "reason": "stay away"})
    disconnected = await events.next("disconnected")

    assert (subscribed.channel, side.unpack(subscribed.data), received) == (topic, {"a": 1}, ["hi"])
    assert unsubscribed.channel == topic
    assert (connecting.code, connecting.reason) == (4_000, "come back")
    assert (disconnected.code, disconnected.reason) == (4_500, "stay away")


@pytest.mark.parametrize(
    ("topic", "code"),
    [("nowhere:1", 102), ("chat:lobby", 103), ("$private:1", 103), ("limited:a#1", 103), ("x" * 300, 107)],
)
async def test_what_cannot_be_subscribed_to_ends_with_its_code(side: Side, topic: str, code: int) -> None:
    client, _ = await side.connected()
    events = Recorder()

    await client.new_subscription(topic, events=events).subscribe()

    assert (await events.next("unsubscribed")).code == code


async def test_what_cannot_be_done_is_an_error_with_its_code(side: Side) -> None:
    client, _ = await side.connected()
    topic = unique("fleeting")
    await side.subscribed(client, topic)

    for expected, asked in [
        (103, client.publish(unique("test"), side.pack({}))),
        (102, client.publish("nowhere:1", side.pack({}))),
        (108, client.history(topic, limit=1)),
        (108, client.presence(topic)),
        (103, client.presence_stats(unique("presence"))),
        (104, client.rpc("no.such.method", side.pack({}))),
    ]:
        with pytest.raises(ReplyError) as error:
            await asked
        assert error.value.code == expected


async def test_a_client_calls_a_function(side: Side) -> None:
    visitor, _ = await side.connected()
    client, _ = await side.connected(token=token(sub="42"))

    result = await client.rpc("shop.price", side.pack({"product": 7}))

    assert side.unpack(result.data) == {"price": 700, "user": "42"}
    for expected, caller in [(103, visitor), (1001, client)]:
        with pytest.raises(ReplyError) as error:
            await caller.rpc("shop.order", side.pack({"product": 1}))
        assert error.value.code == expected
