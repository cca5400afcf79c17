from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pytest_django import Settings

from notifications.events.exceptions import LogUnavailable
from notifications.events.redis_clients import translated_errors
from notifications.events.redis_connection import RedisAddress, RedisConnection, command, connection
from tests.servers import RedisServer, free_port, redis_server_binary, required


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
        running.stop()


def kill(server: RedisServer) -> None:
    server.process.kill()
    server.process.wait(10)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[str], RedisConnection]]:
    """Makes connections to a URL, which are closed when the test ends."""
    made: list[RedisConnection] = []

    def make(url: str) -> RedisConnection:
        made.append(RedisConnection(RedisAddress.of(url)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("words", "encoded"),
    [
        (("PING",), b"*1\r\n$4\r\nPING\r\n"),
        (("SET", "ü", b"\x00\xff\r\n"), b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$4\r\n\x00\xff\r\n\r\n"),
        (("EXPIRE", "k", 60), b"*3\r\n$6\r\nEXPIRE\r\n$1\r\nk\r\n$2\r\n60\r\n"),
        (("ECHO", ""), b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n"),
    ],
)
def test_a_command_is_an_array_of_bulk_strings(words: tuple[Any, ...], encoded: bytes) -> None:
    assert command(*words) == encoded


async def test_replies_come_to_whoever_asked(server: RedisServer) -> None:
    asked = [connection().execute(command("ECHO", str(number))) for number in range(1_000)]

    assert await asyncio.gather(*asked) == [str(number).encode() for number in range(1_000)]
    assert await connection().execute(command("SET", "k", b"\x00\r\n")) == b"OK"
    assert await connection().execute(command("GET", "k")) == b"\x00\r\n"
    assert await connection().execute(command("GET", "nothing")) is None
    assert await connection().execute(command("RPUSH", "list", "message", "a", "b")) == 3
    assert await connection().execute(command("LRANGE", "list", 0, -1)) == [b"message", b"a", b"b"]


async def test_an_error_is_raised_for_one_command_and_in_its_place_among_many(server: RedisServer) -> None:
    before, wrong, after = (
        connection().execute(command(*words)) for words in (("SET", "k", "v"), ("INCR", "k"), ("GET", "k"))
    )
    many = await connection().execute_many([command("INCR", "n"), command("INCR", "k"), command("INCR", "n")])

    assert (await before, await after) == (b"OK", b"v")
    with pytest.raises(redis.ResponseError, match="not an integer"):
        await wrong
    assert many[0], many[2] == (1, 2)
    assert isinstance(many[1], redis.ResponseError)
    assert await connection().execute_many([]) == []


async def test_commands_of_one_turn_are_one_write(server: RedisServer) -> None:
    observer = redis.Redis.from_url(server.url)
    await connection().execute(command("PING"))
    before = observer.info("stats")["total_reads_processed"]

    await asyncio.gather(*(connection().execute(command("INCR", "n")) for _ in range(100)))

    # The second INFO is read as well.
    assert observer.info("stats")["total_reads_processed"] - before == 2
    assert observer.info("clients")["connected_clients"] == 2
    observer.close()


async def test_cancelled_callers_do_not_shift_replies(server: RedisServer) -> None:
    async def echo(text: str) -> bytes:
        answer: bytes = await connection().execute(command("ECHO", text))
        return answer

    chance = random.Random(7)
    for _ in range(20):
        asking = {str(number): asyncio.create_task(echo(str(number))) for number in range(200)}
        await asyncio.sleep(0)
        cancelled = {text for text in asking if chance.random() < 0.3}
        for text in cancelled:
            asking[text].cancel()
        answers = await asyncio.gather(*asking.values(), return_exceptions=True)
        for text, answer in zip(asking, answers, strict=True):
            assert isinstance(answer, asyncio.CancelledError) if text in cancelled else answer == text.encode()


async def test_silence_fails_every_caller_in_time_and_the_next_call_works(
    server: RedisServer, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    await connection().execute(command("PING"))
    server.process.send_signal(19)  # SIGSTOP
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def ask() -> None:
        with translated_errors():
            await connection().execute(command("PING"))

    answers = await asyncio.gather(*(ask() for _ in range(10)), return_exceptions=True)
    took = loop.time() - begun
    server.process.send_signal(18)  # SIGCONT

    assert [type(answer) for answer in answers] == [LogUnavailable] * 10
    assert 0.3 <= took < 1.3
    assert await connection().execute(command("ECHO", "after")) == b"after"


async def test_a_paused_redis_times_out_and_its_late_replies_are_nobodys(
    server: RedisServer, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.2
    with redis.Redis.from_url(server.url) as observer:
        observer.execute_command("CLIENT", "PAUSE", 600)
    for _ in range(2):
        with pytest.raises(LogUnavailable), translated_errors():
            await connection().execute(command("ECHO", "early"))
    settings.HUB_REDIS_TIMEOUT_SECONDS = 5

    assert await connection().execute(command("ECHO", "late")) == b"late"


async def test_progress_keeps_a_long_pipeline_alive(server: RedisServer, settings: Settings) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.3
    spin = "local t = redis.call('TIME'); repeat local n = redis.call('TIME') \
        until (n[1] - t[1]) * 1000000 + n[2] - t[2] > 100000; return 1"

    # Larger than what Redis reads at once, for it answers what it has read at once.
    answers = await connection().execute_many([command("EVAL", spin, 0, "x" * 50_000) for _ in range(8)])

    assert answers == [1] * 8


async def test_a_busy_loop_is_not_taken_for_a_silent_redis(server: RedisServer, settings: Settings) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 0.1
    await connection().execute(command("PING"))

    asked = connection().execute(command("ECHO", "there"))
    await asyncio.sleep(0)
    spinning = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < spinning:
        pass

    assert await asked == b"there"


async def test_a_killed_redis_fails_all_that_wait_and_is_used_again_when_it_is_back(
    server: RedisServer, settings: Settings
) -> None:
    settings.HUB_REDIS_TIMEOUT_SECONDS = 5
    blocked = connection().execute(command("BLPOP", "nothing", 0))
    behind = [connection().execute(command("INCR", "n")) for _ in range(50)]
    await asyncio.sleep(0.05)

    await asyncio.to_thread(kill, server)
    answers = await asyncio.wait_for(asyncio.gather(blocked, *behind, return_exceptions=True), 2)
    with pytest.raises(LogUnavailable), translated_errors():
        await connection().execute(command("PING"))
    await asyncio.to_thread(server.start)

    assert {type(answer) for answer in answers} == {redis.ConnectionError}
    assert await connection().execute(command("INCR", "n")) == 1  # nothing was sent again


async def test_a_connection_that_redis_ends_is_made_again(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as observer:
        for number in range(1, 4):
            assert await connection().execute(command("INCR", "n")) == number
            mine = connection()._protocol
            assert mine is not None
            assert observer.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == 1
            while mine.error is None:
                await asyncio.sleep(0)


async def test_what_is_no_reply_ends_the_connection() -> None:
    async def talk_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    port = free_port()
    async with await asyncio.start_server(talk_http, "127.0.0.1", port):
        wrong = RedisConnection(RedisAddress.of(f"redis://127.0.0.1:{port}"))
        with pytest.raises(redis.ConnectionError, match="no reply"):
            await wrong.execute(command("PING"))
        wrong.close()


async def test_nobody_there_is_told_at_once(settings: Settings, connect: Callable[[str], RedisConnection]) -> None:
    with pytest.raises(LogUnavailable), translated_errors():
        await connect(f"redis://127.0.0.1:{free_port()}/0").execute(command("PING"))


async def test_the_number_in_the_url_is_selected(
    server: RedisServer, connect: Callable[[str], RedisConnection]
) -> None:
    await connect(f"redis://127.0.0.1:{server.port}/3").execute(command("SET", "k", "v"))

    with redis.Redis(port=server.port, db=3) as third, redis.Redis(port=server.port) as first:
        assert (third.get("k"), first.get("k")) == (b"v", None)
    with pytest.raises(redis.ResponseError, match="out of range"):
        await connect(f"redis://127.0.0.1:{server.port}/99").execute(command("SET", "k", "v"))


async def test_passwords_and_users_of_the_url_sign_in(
    server: RedisServer, connect: Callable[[str], RedisConnection]
) -> None:
    with redis.Redis.from_url(server.url) as administrator:
        administrator.execute_command("ACL", "SETUSER", "ana", "on", ">s3:cret", "~*", "&*", "+@all")
        administrator.execute_command("CONFIG", "SET", "requirepass", "pass/word")
        address = f"127.0.0.1:{server.port}/0"

        assert await connect(f"redis://:pass%2Fword@{address}").execute(command("ACL", "WHOAMI")) == b"default"
        assert await connect(f"redis://ana:s3%3Acret@{address}").execute(command("ACL", "WHOAMI")) == b"ana"
        for wrong in ("", ":wrong@", "ana:wrong@", "nobody:pass%2Fword@"):
            with pytest.raises(LogUnavailable, match=r"NOAUTH|WRONGPASS"), translated_errors():
                await connect(f"redis://{wrong}{address}").execute(command("SET", "k", "v"))
        assert administrator.get("k") is None


async def test_a_unix_socket_is_reached(tmp_path: Path, connect: Callable[[str], RedisConnection]) -> None:
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    path = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(binary, *options, stdout=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(path)
                break
            except OSError:  # it is not there, or not listened on yet
                await asyncio.sleep(0.01)
    writer.close()

    assert await connect(f"unix://{path}?db=2").execute(command("ECHO", "unix")) == b"unix"

    process.terminate()
    await process.wait()


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


async def test_tls_is_spoken_as_redis_py_does(
    server: RedisServer, tmp_path: Path, connect: Callable[[str], RedisConnection]
) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                upstream_writer.write(data)
                writer.write(await upstream_reader.read(65_536))
        upstream_writer.close()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(forward, "127.0.0.1", port, ssl=context):
        address = f"rediss://localhost:{port}/0"
        trusting = connect(f"{address}?ssl_ca_certs={certificate}")
        assert await trusting.execute(command("ECHO", "tls")) == b"tls"
        with pytest.raises(LogUnavailable, match="CERTIFICATE_VERIFY_FAILED"), translated_errors():
            await connect(address).execute(command("PING"))
        for one in (trusting, connect(address)):
            one.close()


def test_a_url_of_another_sort_is_refused() -> None:
    with pytest.raises(ValueError, match="redis://"):
        RedisAddress.of("http://localhost")


async def test_closing_fails_those_who_wait_and_a_later_command_connects_again(server: RedisServer) -> None:
    one = RedisConnection(RedisAddress.of(server.url))
    unconnected = one.execute(command("PING"))
    one.close()
    waiting = one.execute(command("BLPOP", "nothing", 0))
    await asyncio.sleep(0.05)
    one.close()

    for failed in (unconnected, waiting):
        with pytest.raises(redis.ConnectionError, match="closed"):
            await failed
    assert await one.execute(command("ECHO", "again")) == b"again"
    one.close()


async def test_a_greeting_precedes_every_command_on_every_socket(server: RedisServer) -> None:
    one = RedisConnection(RedisAddress.of(server.url))
    one.greeting = [command("INCR", "greeted"), command("NO", "SUCH", "COMMAND")]

    assert await one.execute(command("GET", "greeted")) == b"1"
    one.close()
    assert await one.execute(command("GET", "greeted")) == b"2"
    one.close()


async def test_a_connection_belongs_to_its_loop(server: RedisServer) -> None:
    mine = connection()

    async def use_it_elsewhere() -> None:
        assert connection() is not mine
        with pytest.raises(RuntimeError, match="event loop"):
            mine.execute(command("PING"))

    await asyncio.to_thread(asyncio.run, use_it_elsewhere())


async def test_another_url_is_another_connection(server: RedisServer, settings: Settings) -> None:
    await connection().execute(command("SET", "k", "first"))
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{server.port}/1"

    assert await connection().execute(command("GET", "k")) is None
    with redis.Redis.from_url(server.url) as observer:
        while observer.info("clients")["connected_clients"] != 2:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("way", ["runner", "close alone"])
def test_connections_close_with_their_loops(
    server: RedisServer, way: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def use() -> None:
        assert await connection().execute(command("ECHO", "here")) == b"here"

    new_loop().close()  # the first loop of uvloop opens a pipe for the whole process
    gc.collect()
    open_before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(30):
            if way == "runner":
                with asyncio.Runner(loop_factory=new_loop) as runner:
                    runner.run(use())
            else:
                loop = new_loop()
                loop.run_until_complete(use())
                loop.close()
        gc.collect()

    assert [str(warning.message) for warning in warned] == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    with redis.Redis.from_url(server.url) as observer:
        assert observer.info("clients")["connected_clients"] == 1
