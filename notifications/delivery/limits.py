"""What clients and keys may do at most: rates, connections and the depth of JSON. Each limit is a setting.

Every rate is a bucket of tokens in the form of the generic cell rate algorithm: of a bucket one number is kept, the
time at which it will be full again. A float on a session costs an idle one no object, and a bucket that is full need
not be kept at all.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from notifications.delivery.codes import TOO_MANY, TOO_MANY_REQUESTS, Code
from notifications.events import conf
from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_clients import sync_client, translated_errors
from notifications.events.redis_connection import command, connection

logger = logging.getLogger(__name__)

# Sums of floats are a little off; a hundredth of a token more or less is nobody's.
ROUNDING = 0.01

#: How long a client is told to stay away from a process that has as many sessions as it takes.
FULL_SECONDS = 5.0
#: How long rates are counted in memory after Redis failed, before it is asked again.
REST_SECONDS = 1.0
SWEEP_AT = 1_024

_SCRIPT = (Path(__file__).parent / "rate.lua").read_text()
_SCRIPT_HASH = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


# The bucket.


def gcra(arrival: float, now: float, rate: float, burst: float, amount: float = 1.0) -> tuple[float, float]:
    """Take tokens from a bucket that holds `burst` of them and is refilled by `rate` per second.

    `arrival` is the time at which the bucket will be full again, any past one when it is. Returns it as it is then,
    and the seconds to wait, 0.0 when the tokens were taken. They are if there is one: whoever takes a larger
    `amount` than there is owes the rest, and waits the longer the next time.
    """
    step = 1 / rate
    start = arrival if arrival > now else now
    wait = start - now - (burst - 1) * step
    if wait > ROUNDING * step:
        return arrival, wait
    return start + amount * step, 0.0


def burst_of(rate: float) -> float:
    """How many may come at once where no more than `rate` may come per second: those of a whole second."""
    return max(1.0, rate)


class TokenBucket:
    """A bucket in memory, for the use of one thread; times are of a clock that does not go back."""

    __slots__ = ("_arrival", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._arrival = 0.0

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take tokens; returns the seconds to wait, 0.0 when they were taken."""
        self._arrival, wait = gcra(self._arrival, now, self.rate, self.burst, amount)
        return wait


# Rates of users and keys, whichever process they come to.


class MemoryRates:
    """Buckets by name in the memory of one process; any thread may use them."""

    def __init__(self) -> None:
        self._arrivals: dict[str, float] = {}
        self._sweep_at = SWEEP_AT
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._arrivals)

    def take(self, name: str, *, now: float, rate: float, burst: float, amount: float) -> float:
        """Take tokens; returns the seconds to wait, 0.0 when they were taken."""
        with self._lock:
            arrival, wait = gcra(self._arrivals.get(name, 0.0), now, rate, burst, amount)
            if not wait:
                self._arrivals[name] = arrival
                if len(self._arrivals) > self._sweep_at:
                    self._sweep(now)
        return wait

    def _sweep(self, now: float) -> None:
        """Forget the buckets that are full: what is left came within the time that a bucket takes to fill."""
        self._arrivals = {name: arrival for name, arrival in self._arrivals.items() if arrival > now}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._arrivals))


_memory = MemoryRates()
# By the URL of a Redis that failed: when to ask it again.
_failed_until: dict[str, float] = {}


async def wait_for(*, scope: str, subject: str, rate: float, amount: float = 1.0) -> float:
    """Count `amount` against what a subject may do per second, over all processes that share a Redis.

    Returns the seconds to wait, 0.0 when it may; up to a second's worth may come at once, see `gcra()`. It raises
    nothing: while Redis cannot be reached every process counts for itself. To refuse everybody then would turn the
    loss of a guard into an outage, of durable topics too, which go on without Redis.
    """
    name, url = f"{scope}:{subject}", conf.get("HUB_REDIS_URL")
    if _asks_redis(url):
        words = _words(name, rate, amount)
        try:
            with translated_errors():
                try:
                    wait = await connection().execute(command("EVALSHA", _SCRIPT_HASH, *words))
                except NoScriptError:
                    wait = await connection().execute(command("EVAL", _SCRIPT, *words))
        except LogUnavailable as error:
            _failed(url, error)
        else:
            return _answered(url, wait)
    return _memory.take(name, now=time.monotonic(), rate=rate, burst=burst_of(rate), amount=amount)


def wait_for_sync(*, scope: str, subject: str, rate: float, amount: float = 1.0) -> float:
    """The same for synchronous code."""
    name, url = f"{scope}:{subject}", conf.get("HUB_REDIS_URL")
    if _asks_redis(url):
        client: Any = sync_client()
        words = _words(name, rate, amount)
        try:
            with translated_errors():
                try:
                    wait = client.execute_command("EVALSHA", _SCRIPT_HASH, *words)
                except NoScriptError:
                    wait = client.execute_command("EVAL", _SCRIPT, *words)
        except LogUnavailable as error:
            _failed(url, error)
        else:
            return _answered(url, wait)
    return _memory.take(name, now=time.monotonic(), rate=rate, burst=burst_of(rate), amount=amount)


def _words(name: str, rate: float, amount: float) -> tuple[str | int | float, ...]:
    return 1, f"hub:rate:{name}", rate, burst_of(rate), amount


def _asks_redis(url: str) -> bool:
    return bool(url) and time.monotonic() >= _failed_until.get(url, 0.0)


def _failed(url: str, error: LogUnavailable) -> None:
    if url not in _failed_until:
        logger.warning("rates are counted by each process for itself until Redis is back: %s", error)
    _failed_until[url] = time.monotonic() + REST_SECONDS


def _answered(url: str, wait: Any) -> float:
    if _failed_until and _failed_until.pop(url, None) is not None:
        logger.info("rates are counted in Redis again")
    return int(wait) / 1_000_000


def subject_of_key(text: str) -> str:
    """The name of an API key where its requests are counted; the key cannot be had from it."""
    return f"key:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def retry_after(seconds: float) -> str:
    """The value of the header Retry-After: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))


# Connections and commands.


class Refusal(NamedTuple):
    """Why a connection is not taken: an HTTP status, a sentence, and the seconds after which to try again."""

    status: int
    reason: str
    seconds: float

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What an HTTP answer says of it besides its status."""
        return ((b"retry-after", retry_after(self.seconds).encode()),)


class Admission:
    """Whether a process takes one more connection, by `HUB_MAX_SESSIONS` and `HUB_MAX_CONNECTIONS_PER_SECOND`."""

    __slots__ = ("_connections", "_max_sessions")

    def __init__(self) -> None:
        self._max_sessions: int = conf.get("HUB_MAX_SESSIONS")
        rate = conf.get("HUB_MAX_CONNECTIONS_PER_SECOND")
        self._connections = TokenBucket(rate, burst_of(rate)) if rate else None

    def refusal(self, sessions: int, now: float) -> Refusal | None:
        """Why a connection that comes `now` to so many sessions is refused, or None: then it is counted."""
        if self._max_sessions and sessions >= self._max_sessions:
            return Refusal(503, "this process has as many sessions as it takes; try another", FULL_SECONDS)
        if self._connections is not None and (wait := self._connections.take(now)):
            return Refusal(429, "too many connections at once; try again later", wait)
        return None


def count_command(arrival: float, now: float) -> tuple[float, Code | None]:
    """Count one command of a session against `HUB_MAX_COMMANDS_PER_SECOND`.

    Takes and returns the number that is kept on the session, at first 0.0, and the code with which the command is
    refused: TOO_MANY is an answer to it; TOO_MANY_REQUESTS disconnects a client that goes on all the same, for a
    second's worth of commands.
    """
    rate = conf.get("HUB_MAX_COMMANDS_PER_SECOND")
    if not rate:
        return arrival, None
    # What is refused counts as well, in a bucket twice as large: its lower half is for answers alone.
    burst = burst_of(rate)
    arrival, wait = gcra(arrival, now, rate, 2 * burst)
    if wait:
        return arrival, TOO_MANY_REQUESTS
    return arrival, TOO_MANY if (arrival - now) * rate > burst + ROUNDING else None


# JSON.

_BESIDES = bytes(set(range(256)) - set(b'[]{}"'))
# A level down for each bracket that opens, and one up for each that closes, as signed bytes.
_LEVELS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def too_deep(text: bytes | str, *, limit: int) -> bool:
    """Whether JSON nests deeper than `limit`; a scalar has depth 0, `[]` has 1.

    For text that is not JSON the answer means nothing. It is asked on the event loop: nearly all that is sent has no
    more brackets than may be nested, and where there are more, nothing is done in Python for each of them.
    """
    if isinstance(text, str):
        if text.count("[") + text.count("{") <= limit:
            return False
        text = text.encode(errors="replace")
    elif text.count(b"[") + text.count(b"{") <= limit:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # With nothing left but brackets and quotes, two quotes in a row change nothing for the brackets around them.
    brackets = text.translate(None, _BESIDES).replace(b'""', b"")
    if b'"' in brackets:
        brackets = b"".join(brackets.split(b'"')[::2])
    levels = accumulate(memoryview(brackets.translate(_LEVELS)).cast("b"))
    return max(levels, default=0) > limit
