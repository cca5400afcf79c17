"""Deltas and filters: subscriptions that do not get every event as it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from centrifuge import fossil
from pytest_django import Settings

from notifications.events import Cursor, Topic, apublish, window
from notifications.events.topics import registry
from notifications.testing.client import ErrorReply, HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]

READINGS = [{"sensor": f"sensor {place}", "celsius": 20 + place, "since": "2026-11-22"} for place in range(10)]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    class Meters(Topic):
        pattern = "meters:<name>"
        retention = window(size=10, seconds=300)
        deltas = filterable = True

        def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
            return True

    registry.register(Meters)
    yield
    registry.unregister(Meters)


def readings(number: int) -> Any:
    """What differs from `readings()` of other numbers in one place."""
    return {"readings": READINGS, "number": number}


class Reader:
    """Reads publications as the SDKs do: a delta is applied to the payload before it."""

    def __init__(self) -> None:
        self.payload = b""

    def read(self, publication: dict[str, Any]) -> Any:
        received = publication["data"].encode()
        self.payload = fossil.apply_delta(self.payload, received) if publication.get("delta") else received
        return json.loads(self.payload)


async def test_a_delta_follows_the_first_whole_event(hub_client: Connect) -> None:
    client, reader = await hub_client(), Reader()
    result = await client.subscribe("meters:1", delta="fossil")

    for number in range(3):
        await apublish("meters:1", "message", readings(number))
    publications = [await client.next_publication("meters:1") for _ in range(3)]

    assert result["delta"] is True
    assert [publication.get("delta", False) for publication in publications] == [False, True, True]
    assert [reader.read(publication) for publication in publications] == [readings(number) for number in range(3)]
    assert len(publications[1]["data"]) < 60


async def test_who_did_not_ask_gets_whole_events_beside_deltas(hub_client: Connect) -> None:
    plain, other = await hub_client(), await hub_client()
    assert "delta" not in await plain.subscribe("meters:1")
    await other.subscribe("meters:1", delta="fossil")

    for number in range(2):
        await apublish("meters:1", "message", readings(number))

    assert [(await plain.next_publication("meters:1"))["data"] for _ in range(2)] == [readings(0), readings(1)]


async def test_a_delta_that_is_no_shorter_is_sent_as_a_whole(hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("meters:1", delta="fossil")

    await apublish("meters:1", "message", "ü")
    await apublish("meters:1", "message", [1])

    expected = [('"ü"', False), ("[1]", False)]
    received = [await client.next_publication("meters:1") for _ in range(2)]
    assert [(publication["data"], publication.get("delta", False)) for publication in received] == expected


async def test_recovered_events_are_a_chain_and_the_next_one_is_whole(hub_client: Connect) -> None:
    epoch = (await apublish("meters:1", "message", readings(0))).epoch
    for number in (1, 2):
        await apublish("meters:1", "message", readings(number))
    client, reader = await hub_client(), Reader()

    result = await client.subscribe("meters:1", since=Cursor(0, epoch), delta="fossil")
    await apublish("meters:1", "message", readings(3))
    following = await client.next_publication("meters:1")

    chain = [*result["publications"], following]
    assert [publication.get("delta", False) for publication in chain] == [False, True, True, False]
    assert [reader.read(publication) for publication in chain] == [readings(number) for number in range(4)]


async def test_who_was_excluded_gets_the_next_event_as_a_whole(hub_client: Connect) -> None:
    sender, other = await hub_client(), await hub_client()
    readers = {sender: Reader(), other: Reader()}
    for client in readers:
        await client.subscribe("meters:1", delta="fossil")

    await apublish("meters:1", "message", readings(0))
    await apublish("meters:1", "message", readings(1), exclude=sender.session.id)
    await apublish("meters:1", "message", readings(2))

    received = {
        client: [reader.read(await client.next_publication("meters:1")) for _ in range(number)]
        for (client, reader), number in zip(readers.items(), (2, 3), strict=True)
    }
    assert received == {
        sender: [readings(0), readings(2)],
        other: [readings(0), readings(1), readings(2)],
    }


async def test_a_topic_without_deltas_sends_whole_events(hub_client: Connect) -> None:
    client = await hub_client()

    result = await client.subscribe("open:1", delta="fossil")
    await apublish("open:1", "message", {"a": 1})

    assert "delta" not in result
    assert (await client.next_publication("open:1"))["data"] == {"a": 1}


@pytest.mark.parametrize(
    ("topic", "request_", "code"),
    [
        ("meters:1", {"delta": "rsync"}, 107),
        ("meters:1", {"tf": {"key": "room", "cmp": "like", "val": "x"}}, 107),
        ("open:1", {"tf": {"key": "room", "cmp": "eq", "val": "x"}}, 108),
    ],
    ids=["unknown delta", "invalid filter", "topic without filters"],
)
async def test_what_cannot_be_had_is_refused(
    hub_client: Connect, topic: str, request_: dict[str, Any], code: int
) -> None:
    client = await hub_client()

    with pytest.raises(ErrorReply) as error:
        await client.subscribe(topic, **request_)

    assert error.value.code == code
    assert client.session.subscriptions == {}


async def test_a_filter_passes_the_events_with_its_tags(hub_client: Connect) -> None:
    cellar, warm, everything = await hub_client(), await hub_client(), await hub_client()
    await cellar.subscribe("meters:1", tf={"key": "room", "cmp": "eq", "val": "cellar"}, delta="fossil")
    await warm.subscribe("meters:1", tf={"key": "celsius", "cmp": "gt", "val": "20"})
    await everything.subscribe("meters:1")

    rooms = itertools.cycle(["cellar", "roof"])
    for celsius in (18, 19, 21, 22):
        await apublish("meters:1", "message", celsius, tags={"room": next(rooms), "celsius": str(celsius)})

    received = {
        client: [(await client.next_publication("meters:1"))["data"] for _ in range(number)]
        for client, number in ((cellar, 2), (warm, 2), (everything, 4))
    }
    assert received == {cellar: [18, 21], warm: [21, 22], everything: [18, 19, 21, 22]}


async def test_a_filter_sees_the_type_and_holds_for_what_was_missed(hub_client: Connect) -> None:
    epoch = (await apublish("meters:1", "reading", 1)).epoch
    for type, data in (("alarm", 2), ("reading", 3)):
        await apublish("meters:1", type, data)
    client = await hub_client()

    result = await client.subscribe("meters:1", since=Cursor(0, epoch), tf={"key": "type", "cmp": "eq", "val": "alarm"})
    for type, data in (("reading", 4), ("alarm", 5)):
        await apublish("meters:1", type, data)

    assert [publication["data"] for publication in result["publications"]] == [2]
    assert (await client.next_publication("meters:1"))["data"] == 5
