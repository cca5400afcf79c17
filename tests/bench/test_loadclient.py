from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request

from tests.bench.loadclient import LoadClient, compiled, compiler, fault_of
from tests.servers import eventually, free_port

SOCKETS = 20
SUBSCRIBE = ["--path", "/subscribe/%t", "--publisher-path", "/publish", "--publication", "%t %p", "--patience", "0.5"]

Broadcast = Callable[[list[ServerConnection], str], Awaitable[None]]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled programs."""
    if compiler() is None:
        pytest.skip("a C compiler is missing")
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def c_server(programs: Path) -> Iterator[str]:
    """The address of a running C server."""
    port = free_port()
    process = subprocess.Popen([compiled("epollserver", folder=programs), str(port)])
    eventually(lambda: _listens(port))
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("topics", [1, SOCKETS])
@pytest.mark.parametrize("command", ["closed 0.2 8", "latency 5 1", "open 0.2 200"])
def test_each_receiver_gets_each_message_once(c_server: str, programs: Path, topics: int, command: str) -> None:
    with LoadClient(["--address", c_server, "--topics", str(topics), *SUBSCRIBE], folder=programs) as client:
        assert client.subscribe(SOCKETS)["ready"] == SOCKETS
        client.join_publishers()
        result = client.command(command)
    assert result["published"] > 0
    assert result["completed"] == result["published"]
    assert result["expected"] == result["received"] == result["published"] * SOCKETS // topics
    assert fault_of(result) is None


def test_delays_count_from_the_intended_time(programs: Path) -> None:
    async def late(receivers: list[ServerConnection], message: str) -> None:
        await asyncio.sleep(0.05)
        await _to_all(receivers, message)

    async def measured() -> dict[str, float]:
        async with broadcasting(late) as address:
            # The server is busy for 50 ms with a message, and another one is due every 10 ms: the fifth waits for 200.
            return await asyncio.to_thread(_outcome, address, programs, "open 0.055 100")

    result = asyncio.run(measured())
    assert result["received"] == 5 * SOCKETS
    assert 190_000 < result["max_us"] < 400_000
    assert 40_000 < result["p50_us"] < result["p99_us"] <= result["max_us"]


async def _to_all(receivers: list[ServerConnection], message: str) -> None:
    for receiver in receivers:
        await receiver.send(message)


async def _in_fragments(receivers: list[ServerConnection], message: str) -> None:
    for receiver in receivers:
        await receiver.send([message[:20], message[20:21], message[21:]])


async def _joined(receivers: list[ServerConnection], message: str) -> None:
    for receiver in receivers:
        await receiver.send(f"first line\n{message}\nlast line\n")


async def _not_to_the_last(receivers: list[ServerConnection], message: str) -> None:
    await _to_all(receivers[:-1] if _sequence(message) == 3 else receivers, message)


async def _twice_to_the_last(receivers: list[ServerConnection], message: str) -> None:
    await _to_all([*receivers, receivers[-1]] if _sequence(message) == 3 else receivers, message)


async def _of_another_topic(receivers: list[ServerConnection], message: str) -> None:
    await receivers[-1].send(message.replace("~000000", "~000001"))
    await _to_all(receivers, message)


def _swapping() -> Broadcast:
    held: list[str] = []

    async def broadcast(receivers: list[ServerConnection], message: str) -> None:
        if _sequence(message) == 3:
            held.append(message)
            return
        await _to_all(receivers, message)
        while held:
            await _to_all(receivers, held.pop())

    return broadcast


def _sequence(message: str) -> int:
    found = re.search(r"~\d{6}(\d{10})\d{19}", message)
    assert found is not None
    return int(found[1])


@asynccontextmanager
async def broadcasting(broadcast: Broadcast) -> AsyncIterator[str]:
    """The address of a server that hands each published message to `broadcast`."""
    receivers: list[ServerConnection] = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path.startswith("/subscribe/"):
            receivers.append(connection)
            await connection.wait_closed()
            return
        async for message in connection:
            assert isinstance(message, str)
            await broadcast(receivers, message.partition(" ")[2])

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"127.0.0.1:{port}"


def _outcome(address: str, programs: Path, command: str) -> dict[str, float]:
    with LoadClient(["--address", address, *SUBSCRIBE], folder=programs) as client:
        client.subscribe(SOCKETS)
        client.join_publishers()
        return client.command(command)


@pytest.mark.parametrize(
    ("broadcast", "fault"),
    [
        pytest.param(_to_all, None, id="faultless"),
        pytest.param(_in_fragments, None, id="records in fragments"),
        pytest.param(_joined, None, id="records among other text"),
        pytest.param(_not_to_the_last, "99 of 100 deliveries arrived", id="lost"),
        pytest.param(_twice_to_the_last, "1 duplicates", id="repeated"),
        pytest.param(_swapping(), f"{SOCKETS} reordered", id="out of order"),
        pytest.param(_of_another_topic, "5 foreign", id="on the wrong topic"),
    ],
)
async def test_faults_of_a_server_are_told(broadcast: Broadcast, fault: str | None, programs: Path) -> None:
    async with broadcasting(broadcast) as address:
        result = await asyncio.to_thread(_outcome, address, programs, "open 0.055 100")
    assert result["expected"] == 5 * SOCKETS
    assert fault_of(result) == fault


async def test_a_connection_that_the_server_closes_is_told(programs: Path) -> None:
    async def hang_up(receivers: list[ServerConnection], message: str) -> None:
        await _to_all(receivers, message)
        if _sequence(message) == 3:
            await receivers.pop().close(4000, "enough")

    async with broadcasting(hang_up) as address:
        result = await asyncio.to_thread(_outcome, address, programs, "open 0.055 100")
    assert fault_of(result) == "98 of 100 deliveries arrived, 1 closed, closed with 4000 enough"


async def test_each_connection_may_await_an_answer_of_its_own(programs: Path, tmp_path: Path) -> None:
    async def answer(connection: ServerConnection) -> None:
        number = int(await connection.recv())
        await connection.send("0." if number == 3 else f"{number}.")
        if number == 3:
            await connection.close()
        await connection.wait_closed()

    questions, answers = tmp_path / "questions", tmp_path / "answers"
    questions.write_text("".join(f"{number}\0" for number in range(SOCKETS)))
    answers.write_text("".join(f"{number}.\0" for number in range(SOCKETS)))
    async with serve(answer, "127.0.0.1", 0, compression=None) as server:
        address = f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        arguments = ["--address", address, "--preamble-file", str(questions), "--ready-file", str(answers)]
        with LoadClient(arguments, folder=programs) as client:
            result = await asyncio.to_thread(client.command, f"subscribe {SOCKETS}")
    assert result["ready"] == SOCKETS - 1
    assert result["failed"] == 1


@pytest.mark.parametrize(("attempts", "ready"), [(0, SOCKETS - 5), (4, SOCKETS - 1), (5, SOCKETS)])
async def test_a_connection_that_breaks_is_opened_again(programs: Path, attempts: int, ready: int) -> None:
    broken: list[ServerConnection] = []

    async def hang_up(connection: ServerConnection, request: Request) -> None:
        if len(broken) < 5:
            broken.append(connection)
            connection.transport.abort()

    async with serve(ServerConnection.wait_closed, "127.0.0.1", 0, compression=None, process_request=hang_up) as server:
        address = f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with LoadClient(["--address", address, "--again", str(attempts)], folder=programs) as client:
            result = await asyncio.to_thread(client.command, f"subscribe {SOCKETS}")
    assert result["ready"] == ready
    assert result["failed"] == SOCKETS - ready
    assert result["again"] == attempts


def test_a_server_that_refuses_is_told(programs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        async def refused() -> None:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                writer.close()

            async with await asyncio.start_server(answer, sock=listener):
                with LoadClient(["--address", address, *SUBSCRIBE], folder=programs) as client:
                    result = await asyncio.to_thread(client.command, f"subscribe {SOCKETS}")
            assert result["ready"] == 0
            assert result["failed"] == SOCKETS
            assert result["note"].startswith("no WebSocket: HTTP/1.1 403 Forbidden")

        asyncio.run(refused())
