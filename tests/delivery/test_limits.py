"""Limits: the buckets of tokens, alone and shared in Redis, and the depth of JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from notifications.delivery.codes import TOO_MANY, TOO_MANY_REQUESTS
from notifications.delivery.limits import (
    FULL_SECONDS,
    REST_SECONDS,
    ROUNDING,
    SWEEP_AT,
    Admission,
    MemoryRates,
    Refusal,
    TokenBucket,
    count_command,
    gcra,
    retry_after,
    too_deep,
    wait_for,
    wait_for_sync,
)
from tests.servers import PROJECT, RedisServer, eventually, redis_server_binary, required


@pytest.fixture
def subject() -> str:
    """A name whose bucket nobody has used."""
    return uuid.uuid4().hex


@pytest.fixture
def server(tmp_path: Path, settings: Settings) -> Iterator[RedisServer]:
    """A Redis that the test may kill and freeze."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    running = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = running.url
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGCONT)
        running.stop()


# The bucket.


def test_a_bucket_is_one_number() -> None:
    assert gcra(0.0, 100.0, rate=4, burst=2) == (100.25, 0.0)
    assert gcra(100.25, 100.0, rate=4, burst=2) == (100.5, 0.0)
    assert gcra(100.5, 100.0, rate=4, burst=2) == (100.5, 0.25)
    assert gcra(100.5, 100.125, rate=4, burst=2) == (100.5, 0.125)
    assert gcra(100.5, 100.25, rate=4, burst=2) == (100.75, 0.0)
    assert gcra(100.75, 200.0, rate=4, burst=2) == (200.25, 0.0)


def test_whoever_takes_more_than_there_is_owes_the_rest() -> None:
    arrival, wait = gcra(0.0, 100.0, rate=4, burst=2, amount=40)

    assert (arrival, wait) == (110.0, 0.0)
    assert gcra(arrival, 100.0, rate=4, burst=2) == (110.0, 9.75)
    assert gcra(arrival, 109.75, rate=4, burst=2) == (110.25, 0.0)


@given(
    st.lists(st.floats(0, 3), max_size=200),
    st.sampled_from([0.5, 1, 3, 7, 10, 1_000, 10_000]),
    st.sampled_from([1, 2, 3, 10, 100]),
    st.floats(0, 1e6),
)
def test_no_window_has_more_than_the_burst_and_what_flowed_in(
    gaps: list[float], rate: float, burst: float, now: float
) -> None:
    arrival, taken = 0.0, []

    for gap in gaps:
        now += gap / rate
        arrival, wait = gcra(arrival, now, rate, burst)
        if wait:
            assert gcra(arrival, now + wait, rate, burst)[1] == 0
        else:
            taken.append(now)

    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - start) + ROUNDING


@pytest.mark.parametrize("rate", [1, 3, 7, 10, 100, 10_000])
def test_a_whole_burst_fits_at_any_time_and_no_more(rate: float) -> None:
    bucket = TokenBucket(rate, burst=rate)

    for now in (0.0, 1.1, 123_456.7):
        assert [bucket.take(now) for _ in range(int(rate))] == [0.0] * int(rate)
        assert bucket.take(now) == pytest.approx(1 / rate, rel=2 * ROUNDING)


def test_buckets_in_memory_are_forgotten_when_they_are_full() -> None:
    rates = MemoryRates()

    for number in range(SWEEP_AT):
        assert rates.take(f"early:{number}", now=100.0, rate=1, burst=1, amount=1) == 0
    assert rates.take("early:0", now=100.5, rate=1, burst=1, amount=1) == 0.5
    for number in range(SWEEP_AT + 1):
        assert rates.take(f"late:{number}", now=102.0, rate=1, burst=1, amount=1) == 0

    assert len(rates) == SWEEP_AT + 1
    assert rates.take("late:0", now=102.5, rate=1, burst=1, amount=1) == 0.5


# Rates of users and keys.


async def test_scopes_and_subjects_count_for_themselves(subject: str) -> None:
    assert await wait_for(scope="one", subject=subject, rate=1) == 0
    assert 0 < await wait_for(scope="one", subject=subject, rate=1) <= 1
    assert await wait_for(scope="other", subject=subject, rate=1) == 0
    assert await wait_for(scope="one", subject=f"{subject}2", rate=1) == 0


async def test_synchronous_callers_take_from_the_same_bucket(subject: str) -> None:
    assert wait_for_sync(scope="one", subject=subject, rate=1) == 0
    assert 0 < await wait_for(scope="one", subject=subject, rate=1) <= 1
    assert 0 < wait_for_sync(scope="one", subject=subject, rate=1) <= 1


ANOTHER_PROCESS = """
import asyncio, sys
from django.conf import settings
settings.configure(HUB_REDIS_URL=sys.argv[1])
from notifications.delivery.limits import wait_for
print(asyncio.run(wait_for(scope="one", subject=sys.argv[2], rate=10)))
"""


def in_another_process(url: str, subject: str) -> float:
    """What `wait_for()` says there, at ten per second."""
    arguments = [sys.executable, "-c", ANOTHER_PROCESS, url, subject]
    return float(subprocess.run(arguments, cwd=PROJECT, check=True, capture_output=True, timeout=60).stdout)


async def test_processes_share_what_is_left_in_redis(redis_url: str, settings: Settings, subject: str) -> None:
    settings.HUB_REDIS_URL = redis_url

    assert await wait_for(scope="one", subject=subject, rate=10, amount=10_000) == 0

    # Ten may come at once, and the rest at ten per second.
    assert 900 < await asyncio.to_thread(in_another_process, redis_url, subject) < 999.1
    assert 900 < await asyncio.to_thread(wait_for_sync, scope="one", subject=subject, rate=10) < 999.1
    assert 900 < await wait_for(scope="one", subject=subject, rate=10) < 999.1
    assert await asyncio.to_thread(in_another_process, redis_url, f"{subject}2") == 0


async def test_a_burst_in_redis_is_as_large_as_in_memory(redis_url: str, settings: Settings, subject: str) -> None:
    settings.HUB_REDIS_URL = redis_url

    async def take() -> float:
        return await wait_for(scope="one", subject=subject, rate=0.1)

    first, *others = await asyncio.gather(*(take() for _ in range(20)))

    assert first == 0
    assert all(9 < wait <= 10 for wait in others)


async def test_many_at_once_get_a_second_s_worth(redis_url: str, settings: Settings, subject: str) -> None:
    settings.HUB_REDIS_URL = redis_url
    loop = asyncio.get_running_loop()

    began = loop.time()
    waits = await asyncio.gather(*(wait_for(scope="one", subject=subject, rate=50) for _ in range(200)))
    most = 50 + 50 * (loop.time() - began) + ROUNDING

    assert 50 <= waits.count(0) <= most


async def test_a_bucket_in_redis_is_gone_when_it_is_full(redis_url: str, settings: Settings, subject: str) -> None:
    settings.HUB_REDIS_URL = redis_url

    await wait_for(scope="one", subject=subject, rate=2, amount=4)

    with redis.Redis.from_url(redis_url) as observer:
        assert 1_000 < observer.pttl(f"hub:rate:one:{subject}") <= 2_000
        await wait_for(scope="one", subject=f"{subject}2", rate=100)
        eventually(lambda: not observer.exists(f"hub:rate:one:{subject}2"))


async def test_a_redis_that_forgot_the_script_gets_it_again(server: RedisServer, subject: str) -> None:
    with redis.Redis.from_url(server.url) as observer:
        observer.script_flush()
        assert await wait_for(scope="one", subject=subject, rate=1, amount=100) == 0
        assert 90 < await wait_for(scope="one", subject=subject, rate=1) <= 100
        observer.script_flush()
        assert 90 < wait_for_sync(scope="one", subject=subject, rate=1) <= 100


async def test_without_redis_a_process_counts_for_itself(
    server: RedisServer, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notifications.delivery.limits")
    assert await wait_for(scope="one", subject=subject, rate=2, amount=1_000) == 0
    server.process.kill()
    server.process.wait(10)

    assert await wait_for(scope="one", subject=subject, rate=2) == 0
    assert wait_for_sync(scope="one", subject=subject, rate=2) == 0
    assert 0 < await wait_for(scope="one", subject=subject, rate=2) <= 0.5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith("rates are counted by each process for itself until Redis is back: ")

    server.start()
    with redis.Redis.from_url(server.url) as observer:
        while not observer.exists(f"hub:rate:two:{subject}"):
            await wait_for(scope="two", subject=subject, rate=2)
            await asyncio.sleep(0.02)
    assert caplog.messages[-1] == "rates are counted in Redis again"


async def test_one_waits_for_a_redis_that_does_not_answer_and_the_others_do_not(
    server: RedisServer, subject: str, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.2
    await wait_for(scope="one", subject=subject, rate=1)
    server.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()

    assert await wait_for(scope="two", subject=subject, rate=2) == 0
    began = loop.time()
    waits = [await wait_for(scope="two", subject=f"{subject}{number}", rate=2) for number in range(100)]

    assert waits == [0.0] * 100
    assert loop.time() - began < REST_SECONDS / 2


async def test_what_redis_refuses_stops_nobody(server: RedisServer, subject: str) -> None:
    with redis.Redis.from_url(server.url) as observer:
        observer.lpush(f"hub:rate:one:{subject}", "no number")

    assert await wait_for(scope="one", subject=subject, rate=1) == 0
    assert 0 < await wait_for(scope="one", subject=subject, rate=1) <= 1


@pytest.mark.parametrize(("seconds", "header"), [(0.0001, "1"), (1.0, "1"), (1.2, "2"), (59.9, "60")])
def test_retry_after_has_whole_seconds(seconds: float, header: str) -> None:
    assert retry_after(seconds) == header


# Connections and commands.


def test_a_process_takes_as_many_sessions_as_its_setting_says(settings: Settings) -> None:
    settings.HUB_MAX_SESSIONS = 2

    admission = Admission()

    assert [admission.refusal(sessions, 100.0) for sessions in (0, 1)] == [None, None]
    full = Refusal(503, "this process has as many sessions as it takes; try another", FULL_SECONDS)
    assert [admission.refusal(sessions, 100.0) for sessions in (2, 3)] == [full, full]


def test_connections_come_at_a_rate(settings: Settings) -> None:
    settings.HUB_MAX_CONNECTIONS_PER_SECOND = 4

    admission = Admission()

    assert [admission.refusal(number, 100.0) for number in range(4)] == [None] * 4
    assert admission.refusal(4, 100.0) == Refusal(429, "too many connections at once; try again later", 0.25)
    assert admission.refusal(4, 100.25) is None


def test_connections_that_find_no_room_do_not_count(settings: Settings) -> None:
    settings.HUB_MAX_SESSIONS, settings.HUB_MAX_CONNECTIONS_PER_SECOND = 1, 1

    admission = Admission()

    assert [refusal.status for _ in range(5) if (refusal := admission.refusal(1, 100.0))] == [503] * 5
    assert admission.refusal(0, 100.0) is None


def test_without_limits_every_connection_and_command_is_taken() -> None:
    admission = Admission()

    assert {admission.refusal(1_000_000, 100.0) for _ in range(10_000)} == {None}
    assert {count_command(0.0, 100.0) for _ in range(10_000)} == {(0.0, None)}


def test_who_goes_on_after_refusals_is_disconnected(settings: Settings) -> None:
    settings.HUB_MAX_COMMANDS_PER_SECOND = 3
    arrival = 0.0

    def send(now: float, number: int) -> list[Any]:
        nonlocal arrival
        codes = []
        for _ in range(number):
            arrival, code = count_command(arrival, now)
            codes.append(code)
        return codes

    assert send(100.0, 7) == [None, None, None, TOO_MANY, TOO_MANY, TOO_MANY, TOO_MANY_REQUESTS]
    assert send(101.0, 4) == [TOO_MANY, TOO_MANY, TOO_MANY, TOO_MANY_REQUESTS]
    assert send(102.4, 1) == [None]


def test_a_client_that_keeps_to_the_rate_is_never_refused(settings: Settings) -> None:
    settings.HUB_MAX_COMMANDS_PER_SECOND = 3
    arrival = 0.0

    for number in range(3_000):
        arrival, code = count_command(arrival, 100 + number / 3)
        assert code is None


# JSON.


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("1", 0),
        ("[]", 1),
        ("{}", 1),
        ('{"a": [{}]}', 3),
        ("[[], [[]], []]", 3),
        ('"[[[[[["', 0),
        ('["[[[[[[", "]]]]", "{{{{"]', 1),
        ('["]", [], "["]', 2),
        (r'["\"[[[[", "\\", []]', 2),
        (r'["\\\"[[[[[\\", []]', 2),
        (r'["\\", [[]]]', 3),
        (r'["\n\"[", "\u005b\u005b", "ü[€["]', 1),
        ('{"[": {"}": ["{"]}}', 3),
        ('{"a":{}}\n{"b":{}}', 2),
        ("[" + "{}, " * 5_000 + "[[]]]", 3),
        ("[" * 30_000 + "]" * 30_000, 30_000),
    ],
)
def test_depth(text: str, depth: int) -> None:
    for given_text in (text, text.encode()):
        assert not too_deep(given_text, limit=depth)
        assert depth == 0 or too_deep(given_text, limit=depth - 1)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


TEXTS = st.text(st.sampled_from('[]{}"\\/nü a'), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=30,
)


@given(VALUES, st.integers(0, 8), st.booleans())
def test_depth_of_any_json(value: Any, limit: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)

    assert too_deep(text, limit=limit) is (depth_of(value) > limit)
    assert too_deep(text.encode(), limit=limit) is (depth_of(value) > limit)
