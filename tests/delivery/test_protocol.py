"""The Centrifuge protocol, spoken in process with sessions of a real switchboard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from pytest_django import Settings

from notifications.delivery import control
from notifications.delivery.switchboard import current_switchboard
from notifications.events import Cursor, Topic, apublish
from notifications.events.messages import group_of
from notifications.events.topics import registry
from notifications.testing.client import ErrorReply, HubClient

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


async def ana() -> User:
    return await User.objects.acreate_user("ana", first_name="Ana", last_name="Lima")


async def test_an_event_reaches_every_subscriber(hub_client: Connect) -> None:
    first, second = await hub_client(), await hub_client()
    for client in (first, second):
        await client.subscribe("open:1")

    event = await apublish("open:1", "order.paid", {"amount": 12}, key="k")

    expected = {
        "data": {"amount": 12},
        "offset": 1,
        "epoch": event.epoch,
        "tags": {"type": "order.paid", "id": event.id, "key": "k"},
    }
    assert await first.next_publication("open:1") == expected
    assert await second.next_publication("open:1") == expected


async def test_offsets_arrive_in_order_from_every_log(hub_client: Connect) -> None:
    client = await hub_client()
    for topic in ("open:1", "ledger:1"):
        await client.subscribe(topic)
        for number in range(20):
            await apublish(topic, "message", number)

    for topic in ("open:1", "ledger:1"):
        offsets = [(await client.next_publication(topic))["offset"] for _ in range(20)]
        assert offsets == list(range(1, 21))


async def test_a_topic_that_keeps_nothing_has_no_offsets(hub_client: Connect) -> None:
    client = await hub_client()

    assert await client.subscribe("fleeting:1") == {}
    await apublish("fleeting:1", "message", 1)

    assert await client.next_publication("fleeting:1") == {"data": 1}


async def test_a_client_recovers_what_it_missed(hub_client: Connect) -> None:
    epoch = (await apublish("open:1", "message", 1)).epoch
    for number in (2, 3):
        await apublish("open:1", "message", number)
    client = await hub_client()

    result = await client.subscribe("open:1", since=Cursor(1, epoch))

    assert result == {
        "recoverable": True,
        "positioned": True,
        "epoch": epoch,
        "offset": 1,
        "was_recovering": True,
        "recovered": True,
        "publications": [{"data": 2, "offset": 2}, {"data": 3, "offset": 3}],
    }
    await apublish("open:1", "message", 4)
    assert await client.next_publication("open:1") == {"data": 4, "offset": 4}


@pytest.mark.parametrize("cursor", [Cursor(1, "another"), Cursor(99), Cursor(1)], ids=["epoch", "future", "trimmed"])
async def test_a_cursor_that_cannot_be_recovered_is_told_so(hub_client: Connect, cursor: Cursor) -> None:
    for number in range(15):  # the topic keeps ten
        event = await apublish("open:1", "message", number)
    client = await hub_client()

    result = await client.subscribe("open:1", since=cursor)

    assert result == {
        "recoverable": True,
        "positioned": True,
        "epoch": event.epoch,
        "offset": 15,
        "was_recovering": True,
    }


async def test_a_client_may_refuse_to_go_on_unrecovered(hub_client: Connect) -> None:
    await apublish("open:1", "message", 1)
    client = await hub_client()

    with pytest.raises(ErrorReply) as error:
        await client.subscribe("open:1", since=Cursor(9), flag=2)

    assert error.value.code == 112


async def test_an_event_that_the_layer_lost_is_read_from_the_log(hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")
    switchboard = await current_switchboard()
    await get_channel_layer().group_discard(group_of("open:1"), switchboard.channel)
    await apublish("open:1", "message", "lost")
    await get_channel_layer().group_add(group_of("open:1"), switchboard.channel)

    await apublish("open:1", "message", "next")

    assert [(await client.next_publication("open:1"))["data"] for _ in range(2)] == ["lost", "next"]


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
async def test_a_lost_last_event_is_found_by_comparing_positions(
    hub_client: Connect, topic: str, settings: Settings
) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.05
    client = await hub_client()
    await client.subscribe(topic)
    switchboard = await current_switchboard()
    await get_channel_layer().group_discard(group_of(topic), switchboard.channel)

    await apublish(topic, "message", "lost")

    assert (await client.next_publication(topic))["data"] == "lost"


async def test_subscribers_are_told_when_the_log_lost_its_memory(hub_client: Connect) -> None:
    from notifications.events import logs

    client = await hub_client()
    await client.subscribe("open:1")
    await apublish("open:1", "message", 1)
    await client.next_publication("open:1")
    logs.memory_log.cache_clear()

    await apublish("open:1", "message", 2)

    unsubscribe = {"code": 2500, "reason": "insufficient state"}
    assert await client.next_push() == {"channel": "open:1", "unsubscribe": unsubscribe}
    assert (await client.subscribe("open:1", since=Cursor(1, "old"))).get("recovered") is None


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"method": "subscribe", "channel": "nobody:declared"}, 102),
        ({"method": "subscribe", "channel": "chat:lobby"}, 103),
        ({"method": "subscribe", "channel": "x" * 300}, 107),
        ({"method": "publish", "channel": "open:1", "data": 1}, 103),
        ({"method": "history", "channel": "fleeting:1"}, 108),
        ({"method": "presence", "channel": "fleeting:1"}, 108),
        ({"method": "rpc", "data": 1}, 108),
        ({"method": "subscribe", "channel": "open:1", "tf": {"key": "k", "cmp": "eq", "val": "v"}}, 108),
        ({"method": "subscribe", "channel": "open:1", "type": 1}, 108),
        ({"method": "sub_refresh", "channel": "open:1", "token": "t"}, 103),
        ({"method": "history", "channel": "open:1", "limit": -7}, 107),
        ({"method": "presence", "channel": "x" * 300}, 107),
    ],
)
async def test_what_is_not_possible_is_an_error_of_the_protocol(
    hub_client: Connect, command: dict[str, object], code: int
) -> None:
    client = await hub_client()

    with pytest.raises(ErrorReply) as error:
        await client.command(str(command.pop("method")), **command)

    assert error.value.code == code


@pytest.mark.parametrize("on_the_loop", [False, True], ids=["in a thread", "on the loop"])
@pytest.mark.parametrize("command", ["subscribe", "publish"])
async def test_a_permission_that_fails_costs_one_command_and_not_the_session(
    hub_client: Connect, command: str, on_the_loop: bool
) -> None:
    class BrokenTopic(Topic):
        pattern = "broken:<name>"
        asks_only_identity = on_the_loop

        def may_subscribe(self, user: object, name: str) -> bool:
            raise ZeroDivisionError

        may_publish = may_subscribe

    registry.register(BrokenTopic)
    client = await hub_client()
    await client.subscribe("open:1")

    with pytest.raises(ErrorReply) as error:
        await client.command(command, channel="broken:1", data=1)
    await apublish("open:1", "message", "still here")
    registry.unregister(BrokenTopic)

    assert error.value.code == 100
    assert (await client.next_publication("open:1"))["data"] == "still here"


async def test_subscribing_twice_is_an_error(hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")

    with pytest.raises(ErrorReply) as error:
        await client.subscribe("open:1")

    assert error.value.code == 105


@pytest.mark.parametrize(
    "frame",
    [
        '{"id":2,"subscribe":{"channel":"open:1","recover":true,"offset":-1}}',
        '{"id":2,"history":{"channel":"open:1","since":{"offset":18446744073709551616}}}',
        '{"id":2,"subscribe":{"channel":7}}',
        '{"id":"2","subscribe":{"channel":"open:1"}}',
        "[" * 5_000,
        "garbage",
        "[]",
        "",
        "{}",
        '{"id":2}',
        '{"id":0,"history":{}}',
        '{"id":2,"connect":{}}',
        '{"id":2,"nope":{}}',
    ],
)
async def test_a_malformed_frame_closes_the_session(hub_client: Connect, frame: str) -> None:
    client = await hub_client()

    client.session.feed(frame)

    assert await client.closed_by_hub() == (3501, "bad request", False)


async def test_a_client_that_floods_is_disconnected(hub_client: Connect) -> None:
    client = await hub_client()

    for number in range(2, 1_100):
        client.session.feed(f'{{"id":{number},"presence":{{"channel":"open:1"}}}}')

    assert await client.closed_by_hub() == (3013, "too many requests", False)


async def test_presence_joins_and_leaves(hub_client: Connect) -> None:
    first = await hub_client(await ana())
    await first.subscribe("open:1", join_leave=True)
    own = await first.next_push()
    second = await hub_client()
    await second.subscribe("open:1")

    joined = await first.next_push()
    members = (await first.command("presence", channel="open:1"))["presence"]
    stats = await first.command("presence_stats", channel="open:1")
    second.close()
    left = await first.next_push()

    assert own["join"]["info"]["client"] == first.session.id
    assert joined == {"channel": "open:1", "join": {"info": {"user": "", "client": second.session.id}}}
    assert members[first.session.id]["conn_info"] == {"name": "Ana Lima"}
    assert stats == {"num_clients": 2, "num_users": 2}
    assert left == {"channel": "open:1", "leave": {"info": {"user": "", "client": second.session.id}}}


async def test_an_excluded_client_does_not_get_its_own_event_back(hub_client: Connect) -> None:
    author, reader = await hub_client(), await hub_client()
    for client in (author, reader):
        await client.subscribe("open:1")

    await apublish("open:1", "message", "mine", exclude=author.session.id)
    await apublish("open:1", "message", "for all")

    assert (await reader.next_publication("open:1"))["data"] == "mine"
    assert (await author.next_publication("open:1"))["data"] == "for all"


async def test_what_a_client_publishes_has_its_sender(hub_client: Connect) -> None:
    user = await ana()
    client = await hub_client(user)
    await client.subscribe("chat:lobby")

    await client.publish("chat:lobby", {"message": "hi"})

    publication = await client.next_publication("chat:lobby")
    assert publication["data"] == {"message": "hi"}
    assert publication["tags"]["type"] == "chat.message"
    assert publication["info"] == {
        "user": str(user.pk),
        "client": client.session.id,
        "conn_info": {"name": "Ana Lima"},
    }


async def test_a_message_that_does_not_fit_the_schema_is_refused(hub_client: Connect) -> None:
    client = await hub_client(await ana())
    await client.subscribe("chat:lobby")

    with pytest.raises(ErrorReply) as error:
        await client.publish("chat:lobby", {"message": ""})

    assert error.value.code == 107


async def test_nothing_arrives_after_unsubscribing(hub_client: Connect) -> None:
    client = await hub_client()
    await client.subscribe("open:1")
    await client.subscribe("fleeting:1")

    await client.command("unsubscribe", channel="open:1")
    await apublish("open:1", "message", "unheard")
    await apublish("fleeting:1", "message", "heard")

    assert (await client.next_push())["channel"] == "fleeting:1"


async def test_a_user_who_lost_the_right_is_unsubscribed(hub_client: Connect) -> None:
    user = await User.objects.acreate_user("op", is_staff=True)
    client = await hub_client(user)
    await client.subscribe("activity:staff")

    user.is_staff = False
    await user.asave()

    while "unsubscribe" not in (push := await client.next_push()):
        assert push["channel"] == "activity:staff"
    assert push == {
        "channel": "activity:staff",
        "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
    }


async def test_a_deactivated_user_is_disconnected(hub_client: Connect) -> None:
    user = await ana()
    client = await hub_client(user)

    user.is_active = False
    await user.asave()

    assert (await client.closed_by_hub()).code == 3503


async def test_control_reaches_sessions_of_one_user_only(hub_client: Connect) -> None:
    user = await ana()
    mine, other = await hub_client(user), await hub_client()

    await asyncio.to_thread(control.disconnect, user=str(user.pk))

    assert (await mine.closed_by_hub()).code == 3503
    assert other.open


async def test_a_plain_group_send_is_published_to_the_topic(hub_client: Connect) -> None:
    client = await hub_client(await ana())
    await client.subscribe("chat:lobby")

    await get_channel_layer().group_send("chat_lobby", {"type": "chat_message", "message": "plain"})

    publication = await client.next_publication("chat:lobby")
    assert (publication["data"], publication["offset"]) == ({"message": "plain"}, 1)


async def test_a_plain_member_of_the_group_gets_events_as_plain_messages(hub_client: Connect) -> None:
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add("chat_lobby", channel)

    await apublish("chat:lobby", "chat.message", {"message": "hi"})

    assert await asyncio.wait_for(layer.receive(channel), 5) == {"type": "chat_message", "message": "hi"}


async def test_an_event_that_is_not_kept_reaches_who_is_connected(hub_client: Connect) -> None:
    client = await hub_client()
    epoch = (await client.subscribe("open:1"))["epoch"]

    await apublish("open:1", "message", 1)
    await apublish("open:1", "message", "fleeting", keep=False)
    await apublish("open:1", "message", 2)

    received = [await client.next_publication("open:1") for _ in range(3)]
    assert [(publication["data"], publication.get("offset")) for publication in received] == [
        (1, 1),
        ("fleeting", None),
        (2, 2),
    ]
    late = await (await hub_client()).subscribe("open:1", since=Cursor(0, epoch))
    assert [publication["data"] for publication in late["publications"]] == [1, 2]
