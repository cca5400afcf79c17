"""Publishing from synchronous code through a real Redis: its connections, and what happens when they break."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from pytest_django import Settings

from notifications.events import Event, Publication, Topic, ephemeral, publish, publish_many, window
from notifications.events.event import Cursor
from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_clients import KeptConnections, translated_errors
from notifications.events.redis_connection import command
from notifications.events.selectors import history, position
from notifications.events.topics import registry
from tests.servers import RedisServer, eventually, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(tmp_path: Path, settings: Settings) -> Iterator[RedisServer]:
    """A Redis for the log and the layer of this test alone, with the topics `kept:<name>` and `passing:<name>`."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    running = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = running.url
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": running.url}]},
        }
    }

    class KeptTopic(Topic):
        pattern = "kept:<name>"
        retention = window(size=1_000, seconds=60)

    class PassingTopic(Topic):
        pattern = "passing:<name>"
        retention = ephemeral()

    registry.register(KeptTopic)
    registry.register(PassingTopic)
    yield running
    registry.unregister(KeptTopic)
    registry.unregister(PassingTopic)
    channel_layers.backends.clear()
    running.process.send_signal(signal.SIGCONT)
    running.stop()


@pytest.fixture
def observer(server: RedisServer) -> Iterator[redis.Redis]:
    """A connection to the Redis, of the test itself."""
    client = redis.Redis.from_url(server.url, single_connection_client=True)
    yield client
    client.close()


def connections_made(observer: redis.Redis) -> int:
    """How many connections the Redis has taken since its start."""
    statistics: dict[str, Any] = observer.info("stats")  # type: ignore[assignment]
    return int(statistics["total_connections_received"])


def numbers(topic: str) -> list[Any]:
    """The data of a topic's events, in their order."""
    return [event.data for event in history(topic, limit=1_000)[0]]


def test_one_connection_and_one_command_carry_each_event(server: RedisServer, observer: redis.Redis) -> None:
    publish("kept:a", "counted", 0)
    observer.config_resetstat()

    for number in range(1, 21):
        publish("kept:a", "counted", number)
    publish_many([Publication("kept:a", "counted", number) for number in range(21, 31)])

    commands: dict[str, Any] = observer.info("commandstats")  # type: ignore[assignment]
    asked = {name.removeprefix("cmdstat_"): usage["calls"] for name, usage in commands.items()}
    assert (asked["evalsha"], asked["publish"]) == (30, 30)
    assert "script|load" not in asked
    assert connections_made(observer) == 0
    assert numbers("kept:a") == list(range(31))


def test_the_first_call_after_a_restart_of_redis_works(server: RedisServer) -> None:
    first = publish("kept:a", "counted", 1)
    server.stop()
    server.start()

    second = publish("kept:a", "counted", 2)
    many = publish_many([Publication("kept:a", "counted", number) for number in (3, 4)])

    assert [event.offset for event in (first, second, *many)] == [1, 1, 2, 3]
    assert numbers("kept:a") == [2, 3, 4]
    assert first.epoch != second.epoch
    assert position("kept:a") == Cursor(3, second.epoch)


def test_publishing_without_redis_raises_and_goes_on_with_it(server: RedisServer) -> None:
    publish("kept:a", "counted", 1)
    server.stop()

    with pytest.raises(LogUnavailable):
        publish("kept:a", "counted", 2)
    with pytest.raises(LogUnavailable):
        publish_many([Publication("kept:a", "counted", 3)])
    server.start()

    assert publish("kept:a", "counted", 4).offset == 1
    assert numbers("kept:a") == [4]


def test_connections_that_redis_has_closed_are_noticed(server: RedisServer, observer: redis.Redis) -> None:
    publish("kept:a", "counted", 1)
    observer.client_kill_filter(_type="normal", skipme=True)

    assert publish("kept:a", "counted", 2).offset == 2


def test_scripts_that_redis_was_told_to_forget_are_given_again(server: RedisServer, observer: redis.Redis) -> None:
    publish("kept:a", "counted", 1)
    observer.script_flush()
    publish("kept:a", "counted", 2)
    observer.script_flush()

    events = publish_many([Publication("kept:a", "counted", number) for number in (3, 4, 5)])

    assert [event.offset for event in events] == [3, 4, 5]
    assert numbers("kept:a") == [1, 2, 3, 4, 5]


def test_an_answer_that_comes_too_late_is_nobodys(server: RedisServer) -> None:
    publish("kept:a", "counted", 1)
    server.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()

    with pytest.raises(LogUnavailable):
        publish("kept:a", "counted", 2)
    waited = time.monotonic() - begun
    server.process.send_signal(signal.SIGCONT)
    # What was sent is appended after all, at the latest when this is answered.
    eventually(lambda: position("kept:a").offset == 2)
    third = publish("kept:a", "counted", 3)

    assert 0.8 <= waited < 2.5
    assert third.offset == 3
    assert numbers("kept:a") == [1, 2, 3]


def test_a_refusal_leaves_the_answers_of_others_in_their_places(server: RedisServer, observer: redis.Redis) -> None:
    observer.set("hub:position:kept:broken", "no hash")
    before = publish("kept:a", "counted", 1)
    made = connections_made(observer)

    with pytest.raises(LogUnavailable, match="WRONGTYPE"):
        publish_many([Publication(topic, "counted", 2) for topic in ("kept:a", "kept:broken", "kept:a")])

    assert before.offset == 1
    assert publish("kept:a", "counted", 3).offset == 4
    assert connections_made(observer) == made


def test_threads_publish_at_once_and_get_their_own_answers(server: RedisServer, observer: redis.Redis) -> None:
    published: dict[int, list[Event]] = {}
    together = threading.Barrier(8)

    def work(thread: int) -> None:
        together.wait(10)
        published[thread] = [publish(f"kept:{thread % 2}", "counted", [thread, number]) for number in range(50)]

    publish("kept:other", "counted", 0)
    before = connections_made(observer)
    threads = [threading.Thread(target=work, args=[thread]) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    for half in (0, 1):
        stored = {event.offset: event.data for event in history(f"kept:{half}", limit=1_000)[0]}
        assert sorted(stored) == list(range(1, 201))
        own = [event for thread in range(half, 8, 2) for event in published[thread]]
        assert {event.offset: event.data for event in own} == stored
    assert connections_made(observer) - before <= 8  # seven more threads, and one that reads


def test_a_forked_process_does_not_share_its_parents_connection(server: RedisServer, observer: redis.Redis) -> None:
    publish("kept:a", "counted", "parent")
    before = connections_made(observer)

    child = os.fork()
    if child == 0:  # nothing but publishing may happen here, least of all pytest's own end
        failed = True
        try:
            failed = publish("kept:a", "counted", "child").offset != 2
        finally:
            os._exit(failed)
    _, status = os.waitpid(child, 0)
    third = publish("kept:a", "counted", "parent again")

    assert os.waitstatus_to_exitcode(status) == 0
    assert third.offset == 3
    assert connections_made(observer) - before == 1  # the child's own; the parent goes on with its first
    assert numbers("kept:a") == ["parent", "child", "parent again"]


def test_topics_that_keep_nothing_are_announced(server: RedisServer, observer: redis.Redis) -> None:
    listener = observer.pubsub()
    listener.subscribe("asgi__group__hub.passing.a")
    assert eventually(lambda: listener.get_message(timeout=1)) is not None

    event = publish("passing:a", "counted", 1, exclude="client-1")

    heard = eventually(lambda: listener.get_message(timeout=1))
    listener.close()
    assert (event.offset, event.epoch) == (0, "")
    assert b"client-1" in heard["data"]
    assert event.id.encode() in heard["data"]


def test_connections_sign_in_as_their_address_says(server: RedisServer, observer: redis.Redis) -> None:
    observer.config_set("requirepass", "secret")
    address = f"127.0.0.1:{server.port}/3"

    answers = KeptConnections(f"redis://:secret@{address}").call(
        [command("SET", "key", b"\xff"), command("GET", "key"), command("CLIENT", "INFO")]
    )
    with pytest.raises(LogUnavailable, match=r"(?i)password|auth"), translated_errors():
        KeptConnections(f"redis://:wrong@{address}").call([command("GET", "key")])

    assert answers[:2] == [b"OK", b"\xff"]
    assert b" db=3 " in answers[2]
