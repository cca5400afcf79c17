"""What the WebSocket classes are tried on: a uvicorn server in a thread, and a connection without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import uvicorn
from uvicorn.server import ServerState

from notifications.delivery.auth import Receive, Scope, Send
from notifications.delivery.codes import Code
from notifications.server.sansio import SansIOWebSocketProtocol
from notifications.server.websocket import HubWebSocketProtocol
from tests.server.wire import Peer, Response, read_head, request
from tests.servers import eventually

WebSocketClass = type[HubWebSocketProtocol] | type[SansIOWebSocketProtocol]
CLASSES: list[WebSocketClass] = [HubWebSocketProtocol, SansIOWebSocketProtocol]
GOODBYE = Code(4321, "goodbye")


class RecordingSession:
    """What `hub.frames` adopts: it keeps what is fed to it, and echoes text that is no order."""

    def __init__(self, transport: Any, events: queue.Queue[Any]) -> None:
        self.transport = transport
        self.events = events
        self.stream: Any = None

    def use_stream(self, stream: Any) -> None:
        self.stream = stream

    def feed(self, data: str | bytes) -> None:
        self.events.put(data)
        if isinstance(data, bytes):
            return
        if data == "close":
            self.transport.close(GOODBYE)
        elif data in ("fill", "stall"):
            frame = self.transport.framing(b"x" * 60_000)
            while self.transport.pending() < 1_000_000:
                self.transport.write([frame])
            if data == "stall":
                self.transport.close(GOODBYE)
        elif data == "ping":
            self.transport.ping()
        elif data.startswith("["):
            self.transport.write([self.transport.framing(part.encode()) for part in json.loads(data)])
        else:
            self.transport.write([self.transport.framing(data.encode())])

    def disconnect(self, code: Code) -> None:
        self.events.put(code)
        self.transport.close(code)
        self.closed()

    def closed(self) -> None:
        self.events.put(None)


class ScriptedApplication:
    """The ASGI application of the tests: what it does with a WebSocket is in its path.

    Every connection has its own queue of events, by the `id` in the query.
    """

    def __init__(self) -> None:
        self.events: dict[str, queue.Queue[Any]] = {}
        self.gates: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self.ids = count(1)

    def new_id(self) -> str:
        """The id of a connection to come."""
        number = str(next(self.ids))
        self.events[number] = queue.Queue()
        return number

    def event(self, number: str) -> Any:
        """The next event of a connection."""
        return self.events[number].get(timeout=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["type"] != "websocket":
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        events = self.events.get(query.get("id", ""), queue.Queue())
        await getattr(self, scope["path"].strip("/").replace("/", "_") or "echo")(scope, receive, send, query, events)

    async def echo(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """An ordinary application: it echoes what it receives, and keeps all events."""
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        while True:
            message = dict(await receive())
            events.put(message)
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": GOODBYE.code, "reason": GOODBYE.reason})
            elif (message.get("text") or "").startswith("{"):
                await send({"type": "websocket.close", **json.loads(message["text"])})
            elif message.get("text") is not None:
                await send({"type": "websocket.send", "text": message["text"]})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"]})

    async def session(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """An application that hands over to a session and returns."""
        await receive()
        await send({"type": "websocket.accept"})
        extension = scope["extensions"]["hub.frames"]
        extension["adopt"](RecordingSession(extension["transport"], events))

    async def gate(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Waits until the test opens the gate, then does what `then` says."""
        await receive()
        gate = asyncio.Event()
        self.gates[query["id"]] = asyncio.get_running_loop(), gate
        events.put("waiting")
        await gate.wait()

        async def connect() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        connected = iter([connect])
        await getattr(self, query["then"])(scope, lambda: next(connected, receive)(), send, query, events)

    async def scope(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Keeps the scope."""
        events.put(scope)
        await self.echo(scope, receive, send, query, events)

    async def accept(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Accepts with the subprotocol of the query, and headers."""
        await receive()
        headers = [(b"x-served-by", b"one"), (b"x-served-by", b"two")]
        await send({"type": "websocket.accept", "subprotocol": query.get("subprotocol"), "headers": headers})
        await receive()

    async def refuse(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Answers with a response of its own, in two pieces."""
        await receive()
        headers = [(b"content-type", b"application/json"), (b"x-reason", b"full"), (b"set-cookie", b"a=1")]
        headers.append((b"set-cookie", b"b=2"))
        await send({"type": "websocket.http.response.start", "status": int(query["status"]), "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b'{"full":', "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b" true}"})
        events.put(await receive())

    async def deny(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Closes before it accepts."""
        await receive()
        await send({"type": "websocket.close", "code": 4403})

    async def fail(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Fails before it accepts."""
        raise RuntimeError("the application of a test fails, as it should")

    async def forget(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Returns without an answer."""

    async def break_(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Fails after it accepted."""
        await receive()
        await send({"type": "websocket.accept"})
        raise RuntimeError("the application of a test fails, as it should")

    async def leave(self, scope: Scope, receive: Receive, send: Send, query: Any, events: queue.Queue[Any]) -> None:
        """Returns after it accepted, without a close."""
        await receive()
        await send({"type": "websocket.accept"})


class Server:
    """A uvicorn server in a thread, on a free port."""

    def __init__(self, websocket_class: WebSocketClass, **options: Any) -> None:
        self.websocket_class = websocket_class
        self.application = ScriptedApplication()
        options = {"lifespan": "off", "log_config": None, "ws_ping_interval": None, **options}
        self.server = uvicorn.Server(
            uvicorn.Config(self.application, port=0, ws=websocket_class, timeout_graceful_shutdown=2, **options)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)  # a failed test may not stop it
        self.thread.start()
        eventually(lambda: self.server.started)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Stop as a signal would, and wait for the end."""
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    @property
    def connections(self) -> int:
        """Connections that the server still knows."""
        return len(self.server.server_state.connections)

    def ask(self, data: bytes) -> tuple[Peer, Response]:
        """Send a request on a new connection."""
        peer = Peer(self.port)
        peer.send(data)
        return peer, peer.response()

    @contextlib.contextmanager
    def open(self, path: str, **options: Any) -> Iterator[Connected]:
        """A WebSocket on a path."""
        number = self.application.new_id()
        with Peer(self.port, **options) as peer:
            peer.send(request(f"{path}?id={number}"))
            assert peer.response().status == 101
            yield Connected(peer, self.application, number)

    def open_gate(self, number: str) -> None:
        """Let an application go on that waits at its gate."""
        loop, gate = self.application.gates[number]
        loop.call_soon_threadsafe(gate.set)


class Connected(NamedTuple):
    """An open WebSocket of a test, seen from both sides."""

    peer: Peer
    application: ScriptedApplication
    number: str

    def event(self) -> Any:
        """What the application or the session was given next."""
        return self.application.event(self.number)

    def messages(self, size: int) -> list[str | bytes]:
        """So many messages as the application or the session was given them."""
        given = [self.event() for _ in range(size)]
        return [
            (event["text"] if event.get("text") is not None else event["bytes"]) if isinstance(event, dict) else event
            for event in given
        ]

    def ended(self) -> bool:
        """Whether nothing but the end was given after what was read so far."""
        event = self.event()
        return event is None or event["type"] == "websocket.disconnect"


class RecordingTransport(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.written_late: list[bytes] = []
        self.closed = False
        self.ended = False

    def write(self, data: Any) -> None:
        if self.ended:
            raise RuntimeError("written after write_eof()")  # as the transports of asyncio and uvloop do
        (self.written_late if self.closed else self.written).append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.Protocol()


class Direct:
    """A connection of a WebSocket class without a network, made as uvicorn makes it, and the session it is given.

    To be used within a running loop.
    """

    def __init__(self, websocket_class: WebSocketClass, **options: Any) -> None:
        self.messages: list[str | bytes] = []
        self.stream: Any = None
        self.ends = 0
        self.before_adoption: list[bytes] = []
        self.after_adoption: list[bytes] = []
        config = uvicorn.Config(self._application, interface="asgi3", log_config=None, ws_ping_interval=None, **options)
        config.loaded_app, config.loaded = self._application, True
        self.state = ServerState()
        loop = asyncio.get_running_loop()
        self.protocol: Any = websocket_class(config=config, server_state=self.state, app_state={}, _loop=loop)
        self.transport = RecordingTransport()
        self.protocol.connection_made(self.transport)

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.receive(*self.before_adoption)
        scope["extensions"]["hub.frames"]["adopt"](self)
        # What a loop may do that reads from sockets before it calls what is to be called soon.
        self.receive(*self.after_adoption)

    def use_stream(self, stream: Any) -> None:
        self.stream = stream

    def feed(self, data: str | bytes) -> None:
        self.messages.append(data)

    def closed(self) -> None:
        self.ends += 1

    async def ask(self, data: bytes) -> Response | None:
        """Send a request, and let the application run to its end; returns the answer, if there is one."""
        self.protocol.data_received(data)
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks))
            await asyncio.sleep(0)
        head, separator, body = b"".join(self.transport.written).partition(b"\r\n\r\n")
        self.transport.written = [body] if body else []
        return Response(*read_head(head), body) if separator else None

    async def open(self) -> Direct:
        """Go through the handshake, until the session is adopted."""
        answer = await self.ask(request())
        assert answer is not None
        assert answer.status == 101
        return self

    def receive(self, *pieces: bytes) -> None:
        """Receive bytes, until the connection is closed."""
        for piece in pieces:
            if not self.transport.closed:
                self.protocol.data_received(piece)

    @property
    def written(self) -> bytes:
        """All that was written since the handshake."""
        return b"".join(self.transport.written)

    def lost(self) -> None:
        """End the connection, as the loop does when the transport is closed or the peer is gone."""
        self.transport.closed = True
        self.protocol.connection_lost(None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log of failures that a test causes on purpose."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
