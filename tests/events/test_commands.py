"""`manage.py publish`, `topics` and `listen`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import msgspec
import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from notifications.delivery import presence
from notifications.delivery.listening import Listener
from notifications.delivery.registry import registry
from notifications.events import Cursor, Event, Sender, apublish
from notifications.events.logs import memory_log
from notifications.events.selectors import history
from notifications.events.topics import resolve
from notifications.testing.plugin import PublishedEvents
from tests.servers import Hub, free_port

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def command(*arguments: str) -> str:
    output = StringIO()
    call_command(*arguments, stdout=output)
    return output.getvalue()


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
def test_publish_prints_where_the_event_is(published: PublishedEvents, topic: str) -> None:
    first = command("publish", topic, "order.paid", '{"amount": 12}', "--key", "42")
    second = command("publish", topic, "order.paid", "[1, null]")

    assert published == [
        Event(topic=topic, type="order.paid", data={"amount": 12}, key="42"),
        Event(topic=topic, type="order.paid", data=[1, None]),
    ]
    _, position = history(topic, limit=0)
    assert first == f"offset 1  epoch {position.epoch}\n"
    assert second == f"offset 2  epoch {position.epoch}\n"


def test_publish_without_data_and_to_a_topic_that_keeps_nothing(published: PublishedEvents) -> None:
    assert command("publish", "fleeting:1", "ping") == "offset 0  epoch -\n"
    assert published == [Event(topic="fleeting:1", type="ping", data=None)]


def test_publish_repeats_nothing(published: PublishedEvents) -> None:
    first = command("publish", "open:1", "a", "1", "--idempotency-key", "once")

    assert command("publish", "open:1", "a", "2", "--idempotency-key", "once") == first
    assert len(published) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("open:1", "a", "{amount: 12}"), r"the data is not JSON \(.*\); quote it, as in '{\"message\": \"hi\"}'"),
        (("nobody:declared", "a", "1"), "no declaration matches the topic 'nobody:declared'"),
        (("open:1", "", "1"), "an event's type is 1 to 120 printable characters"),
        (("open:1", "a", '"' + "x" * 65_535 + '"'), "data is 65537 bytes of JSON; HUB_MAX_DATA_BYTES allows 65536"),
    ],
)
def test_publish_says_what_is_wrong(published: PublishedEvents, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        command("publish", *arguments)

    assert published == []


@pytest.mark.parametrize("arguments", [("publish", "open:1", "a", "1"), ("listen", "open:1")])
def test_commands_say_that_no_hub_answers(settings: Settings, tmp_path: Any, arguments: tuple[str, ...]) -> None:
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")

    with pytest.raises(
        CommandError, match=r"no hub process answers on .*/hub\.sock: start it with `manage\.py runhub`"
    ):
        command(*arguments)


def test_publish_says_that_redis_does_not_answer(settings: Settings) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"

    with pytest.raises(CommandError, match="Redis did not take the call"):
        command("publish", "open:1", "a", "1")


def test_topics_lists_what_is_declared() -> None:
    head, *lines = command("topics").splitlines()

    columns = [head.index(name) for name in ("TOPIC", "RETENTION", "TYPE", "SUBSCRIBE", "PUBLISH", "HISTORY")]
    columns += [head.index("PRESENCE"), head.index("CHANNELS GROUP")]

    def row(pattern: str) -> list[str]:
        line = next(line for line in lines if line.startswith(f"{pattern} "))
        return [line[start:end].strip() for start, end in zip(columns, [*columns[1:], None], strict=True)]

    assert row("chat:<path:room>") == [
        "chat:<path:room>",
        "durable 365 d",
        "chat.message",
        "signed-in users; visitors in HUB_PUBLIC_CHAT_ROOMS",
        "subscribers",
        "subscribers",
        "subscribers",
        "chat_{room}",
    ]
    assert row("fleeting:<path:rest>")[1:3] == ["ephemeral", "message"]
    assert row("fleeting:<path:rest>")[-3:] == ["-", "-", "-"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


class Listening:
    """A listener that runs, what it printed and what it said."""

    def __init__(self) -> None:
        self.output = StringIO()
        self.said: list[str] = []
        self.listener = Listener(self.output, self.said.append)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.output.getvalue().splitlines()]

    async def printed(self, number: int) -> list[dict[str, Any]]:
        """The lines, once there are so many."""
        await until(lambda: len(self.lines) >= number)
        return self.lines


@asynccontextmanager
async def listening(*topics: str, since: Cursor | None = None) -> AsyncIterator[Listening]:
    found = Listening()
    task = asyncio.create_task(found.listener.run([resolve(topic) for topic in topics], since=since))
    try:
        await until(lambda: task.done() or len(found.listener.following) == len(topics))
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_listen_prints_events_as_they_come() -> None:
    async with listening("open:1", "ledger:1", "fleeting:1") as found:
        sender = Sender("7", "c", {"name": "Ana"})
        first = await apublish("open:1", "order.paid", {"amount": 12}, key="42", sender=sender)
        await found.printed(1)
        second = await apublish("ledger:1", "message", None)
        await found.printed(2)
        third = await apublish("fleeting:1", "message", "hi")
        lines = await found.printed(3)

    assert first.time is not None
    assert lines[0] == {
        "id": first.id,
        "topic": "open:1",
        "type": "order.paid",
        "offset": 1,
        "epoch": first.epoch,
        "time": first.time.isoformat().replace("+00:00", "Z"),
        "key": "42",
        "sender": {"user": "7", "client": "c", "info": {"name": "Ana"}},
        "data": {"amount": 12},
    }
    assert [(line["id"], line["offset"], line["data"]) for line in lines[1:]] == [
        (second.id, 1, None),
        (third.id, 0, "hi"),
    ]
    assert found.said == []


@pytest.mark.parametrize("topic", ["open:1", "ledger:1"])
async def test_listen_prints_what_is_kept_after_a_position(topic: str) -> None:
    events = [await apublish(topic, "message", number) for number in (1, 2, 3)]

    for since, expected in ((Cursor(), [1, 2, 3]), (events[1].cursor, [3]), (Cursor(1), [2, 3]), (Cursor(3), [])):
        async with listening(topic, since=since) as found:
            await apublish("fleeting:1", "message", 0)
            assert [line["data"] for line in await found.printed(len(expected))] == expected
            assert found.said == []


async def test_listen_prints_more_than_one_answer_of_history_holds(settings: Settings) -> None:
    settings.HUB_MAX_HISTORY = 2
    settings.HUB_MAX_OUTGOING_BYTES = 1_000
    for number in range(7):
        await apublish("open:1", "message", "x" * 1_000 + str(number))

    async with listening("open:1", since=Cursor()) as found:
        assert [line["offset"] for line in await found.printed(7)] == [1, 2, 3, 4, 5, 6, 7]


async def test_listen_says_what_is_no_longer_kept() -> None:
    events = [await apublish("open:1", "message", number) for number in range(13)]

    async with listening("open:1", since=Cursor(1)) as found:
        assert [line["offset"] for line in await found.printed(10)] == list(range(4, 14))
        assert found.said == ["open:1: offsets 2 to 3 are no longer kept"]
    async with listening("open:1", since=Cursor(12, "gone")) as found:
        assert [line["offset"] for line in await found.printed(10)] == list(range(4, 14))
        assert found.said == [
            f"open:1: epoch gone has ended; printing what epoch {events[0].epoch} keeps",
            "open:1: offsets 1 to 3 are no longer kept",
        ]
    async with listening("fleeting:1", since=Cursor()) as found:
        assert found.said == ["fleeting:1 keeps no events; printing those to come"]


async def test_listen_subscribes_again_when_its_position_is_lost(settings: Settings) -> None:
    settings.HUB_POSITION_CHECK_SECONDS = 0.05
    async with listening("open:1") as found:
        await apublish("open:1", "message", 1)
        await found.printed(1)

        memory_log()._streams.clear()  # type: ignore[attr-defined] - as a restarted process has them
        await apublish("open:1", "message", 2)
        await until(lambda: bool(found.said and found.listener.following))
        third = await apublish("open:1", "message", 3)
        lines = await found.printed(2)

    assert found.said == ["open:1: insufficient state, events were missed that its log no longer has"]
    assert (lines[-1]["id"], lines[-1]["data"]) == (third.id, 3)


async def test_a_listener_is_neither_a_node_nor_present() -> None:
    async with listening("open:1") as found:
        await apublish("open:1", "message", 1)
        await found.printed(1)

        assert registry().nodes() == []
        assert await presence.members("open:1") == {}


async def test_a_listener_ends_when_nobody_reads_on() -> None:
    class Gone(StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    listener = Listener(Gone(), lambda sentence: None)
    task = asyncio.create_task(listener.run([resolve("ledger:1")], since=Cursor()))
    await apublish("ledger:1", "message", 1)

    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "epoch:", ":", "9" * 19])
def test_listen_refuses_what_is_no_position(since: str) -> None:
    with pytest.raises(CommandError, match="--since is an offset"):
        command("listen", "open:1", f"--since={since}")


def test_listen_refuses_an_unknown_topic() -> None:
    with pytest.raises(CommandError, match="no declaration matches the topic 'nobody:declared'"):
        command("listen", "open:1", "nobody:declared")


def test_commands_reach_a_running_hub(hub: Hub) -> None:
    first = hub.command("publish", "open:commands", "a", "1").split()
    assert (first[0], first[1], first[2]) == ("offset", "1", "epoch")
    listener = subprocess.Popen(
        [sys.executable, "-m", "hub", "listen", "open:commands", "--since", "all"],
        cwd=hub.folder,
        env=hub.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert listener.stdout is not None
        assert listener.stderr is not None
        assert msgspec.json.decode(listener.stdout.readline())["data"] == 1
        hub.command("publish", "open:commands", "a", '{"n": 2}', "--key", "k")
        line = msgspec.json.decode(listener.stdout.readline())
        assert (line["offset"], line["epoch"], line["key"], line["data"]) == (2, first[3], "k", {"n": 2})
        listener.send_signal(signal.SIGINT)
        assert listener.wait(10) == 0
        assert listener.stderr.read() == ""
    finally:
        listener.kill()
        listener.wait()
        for stream in (listener.stdout, listener.stderr):
            if stream is not None:
                stream.close()
