"""The opening handshake: RFC 6455 §4, and what ASGI says of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from pytest_django import Settings

from notifications.server.sansio import SansIOWebSocketProtocol
from notifications.server.websocket import HubWebSocketProtocol
from tests.server.rigs import CLASSES, Direct, Server, WebSocketClass, quiet
from tests.server.wire import ACCEPT, KEY, PING, PONG, TEXT, Frame, Peer, frame, request
from tests.servers import eventually

HTTP = ["httptools", "h11"]  # uvicorn's HTTP implementations, which pass the request on


@pytest.fixture(
    scope="module", params=[*((HubWebSocketProtocol, http) for http in HTTP), (SansIOWebSocketProtocol, HTTP[0])]
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server for each WebSocket class, and for the hub's own under each HTTP implementation."""
    websocket_class, http = request.param
    running = Server(websocket_class, http=http)
    yield running
    running.stop()


@pytest.fixture(scope="module", params=HTTP)
def hub_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the hub's own class, for what the fallback does otherwise."""
    running = Server(HubWebSocketProtocol, http=request.param)
    yield running
    running.stop()


@pytest.fixture
def by_hub(server: Server) -> bool:
    """Whether the handshake is the hub's own; the fallback's is that of the `websockets` library."""
    return server.websocket_class is not SansIOWebSocketProtocol


def status_of(server: Server, data: bytes) -> int:
    peer, response = server.ask(data)
    with peer:
        if response.status != 101:
            peer.ends()
    return response.status


# §4.2.2 5.: the response that opens


def test_the_key_of_the_rfc_is_answered_with_its_accept_value(server: Server) -> None:
    peer, response = server.ask(request())  # §1.3
    with peer:
        assert response.status == 101
        assert response.all("sec-websocket-accept") == [ACCEPT]
        assert [value.lower() for value in response.all("upgrade")] == ["websocket"]
        assert [value.lower() for value in response.all("connection")] == ["upgrade"]
        assert response.all("content-length") == response.all("transfer-encoding") == []


def test_headers_of_the_application_are_in_the_response(server: Server) -> None:
    peer, response = server.ask(request("/accept"))
    with peer:
        assert response.all("x-served-by") == ["one", "two"]


# §4.2.1: what a request must have


@pytest.mark.parametrize(
    "lines",
    [
        ("Upgrade: WebSocket", "Connection: Upgrade"),
        ("Upgrade: WEBSOCKET", "Connection: UPGRADE"),
        ("upgrade: websocket", "connection: keep-alive, upgrade"),
        ("Upgrade: websocket", "Connection: Upgrade , keep-alive"),
    ],
)
def test_upgrade_and_connection_are_lists_without_regard_to_case(server: Server, lines: tuple[str, str]) -> None:
    assert status_of(server, request("/", *lines, without=["Upgrade", "Connection"])) == 101


@pytest.mark.parametrize("without", ["Upgrade", "Connection"])
def test_a_request_without_upgrade_is_an_ordinary_one(server: Server, without: str) -> None:
    peer, response = server.ask(request("/", without=[without]))
    with peer:
        assert response.status == 418


def test_another_upgrade_is_an_ordinary_request(server: Server) -> None:
    peer, response = server.ask(request("/", "Upgrade: h2c", without=["Upgrade"]))
    with peer:
        assert response.status == 418


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Sec-WebSocket-Key:",),
        ("Sec-WebSocket-Key: no base64 at all!!!!",),
        (f"Sec-WebSocket-Key: {base64.b64encode(bytes(15)).decode()}",),
        (f"Sec-WebSocket-Key: {base64.b64encode(bytes(17)).decode()}",),
        (f"Sec-WebSocket-Key: {KEY.decode()[:-2]}",),
        (f"Sec-WebSocket-Key: {KEY.decode()}", f"Sec-WebSocket-Key: {KEY.decode()}"),
    ],
)
def test_the_key_is_16_bytes_in_base64_given_once(server: Server, lines: tuple[str, ...]) -> None:
    assert status_of(server, request("/", *lines, without=["Sec-WebSocket-Key"])) == 400


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Sec-WebSocket-Version: 8",),
        ("Sec-WebSocket-Version: 14",),
        ("Sec-WebSocket-Version: 13, 8",),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
    ],
)
def test_another_version_is_answered_with_the_one_that_is_spoken(
    server: Server, by_hub: bool, lines: tuple[str, ...]
) -> None:
    # §4.4
    peer, response = server.ask(request("/", *lines, without=["Sec-WebSocket-Version"]))
    with peer:
        if by_hub:
            assert (response.status, response.all("sec-websocket-version")) == (426, ["13"])
        else:
            assert response.status == 400
        peer.ends()


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS"])
def test_the_method_is_get(server: Server, method: str) -> None:
    with Peer(server.port) as peer:
        peer.send(request("/", line=f"{method} / HTTP/1.1"))
        peer._until(lambda unread: b"\r\n\r\n" in unread)
        assert peer.unread.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: get\r\n" in peer.unread.lower()


async def test_a_request_has_one_host() -> None:
    # Left to uvicorn by the fallback, of whose HTTP implementations h11 alone looks.
    for data in (request("/", without=["Host"]), request("/", "Host: a.example")):
        answer = await Direct(HubWebSocketProtocol).ask(data)
        assert answer is not None
        assert answer.status == 400


@pytest.mark.parametrize("websocket_class", CLASSES)
async def test_headers_of_one_name_are_read_as_one_list(websocket_class: WebSocketClass) -> None:
    # uvicorn itself looks at the last Connection header only; a proxy of its own before it may put them in any order.
    lines = ("Connection: keep-alive", "Connection: Upgrade", "Connection: x-other")
    answer = await Direct(websocket_class).ask(request("/", *lines, without=["Connection"]))
    assert answer is not None
    assert answer.status == 101


@pytest.mark.parametrize("target", ["http://127.0.0.1/scope?id={}", "https://hub.example:8443/scope?id={}"])
def test_an_absolute_target_names_its_path(hub_server: Server, target: str) -> None:
    # §4.2.1 1.
    # The websockets library takes the whole target for the path.
    number = hub_server.application.new_id()
    assert status_of(hub_server, request(target.format(number))) == 101
    scope = hub_server.application.event(number)
    assert (scope["path"], scope["query_string"]) == ("/scope", f"id={number}".encode())


def test_a_path_in_other_bytes_than_ascii_is_a_bad_request(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(request("/sch\xf6n"))
        assert peer.response().status == 400


# The scope


def test_the_scope_is_what_asgi_says(server: Server) -> None:
    number = server.application.new_id()
    lines = ("Origin: https://pages.example", "X-Many: one", "X-Many: two", b"X-Bytes: \xe4")
    with Peer(server.port) as peer:
        peer.send(request(f"/sc%6Fpe/?id={number}&b=%C3%A4", *lines))
        assert peer.response().status == 101
        scope = server.application.event(number)
        local = peer.socket.getsockname()
    assert scope["type"] == "websocket"
    assert scope["scheme"] == "ws"
    assert scope["http_version"] == "1.1"
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("/scope/", b"/sc%6Fpe/", "")
    assert scope["query_string"] == f"id={number}&b=%C3%A4".encode()
    assert tuple(scope["client"]) == local
    assert tuple(scope["server"]) == ("127.0.0.1", server.port)
    assert scope["subprotocols"] == []
    assert {"websocket.http.response", "hub.frames"} <= set(scope["extensions"])
    headers = [(name.lower(), value) for name, value in scope["headers"]]
    assert [value for name, value in headers if name == b"x-many"] == [b"one", b"two"]
    assert (b"x-bytes", b"\xe4") in headers
    assert (b"origin", b"https://pages.example") in headers


# §4.2.2 /subprotocol/ and /extensions/


def test_the_subprotocols_offered_are_in_the_scope_in_their_order(server: Server) -> None:
    number = server.application.new_id()
    lines = ("Sec-WebSocket-Protocol: chat, superchat", "Sec-WebSocket-Protocol: centrifuge-json")
    peer, response = server.ask(request(f"/scope?id={number}", *lines))
    with peer:
        assert server.application.event(number)["subprotocols"] == ["chat", "superchat", "centrifuge-json"]
        assert response.all("sec-websocket-protocol") == []


def test_the_subprotocol_chosen_is_in_the_response(server: Server) -> None:
    peer, response = server.ask(request("/accept?subprotocol=b", "Sec-WebSocket-Protocol: a, b"))
    with peer:
        assert (response.status, response.all("sec-websocket-protocol")) == (101, ["b"])


@pytest.mark.parametrize("lines", [(), ("Sec-WebSocket-Protocol: a, b",)])
def test_a_subprotocol_that_was_not_offered_is_never_chosen(hub_server: Server, lines: tuple[str, ...]) -> None:
    # uvicorn leaves it to the application.
    with quiet():
        peer, response = hub_server.ask(request("/accept?subprotocol=c", *lines))
    with peer:
        assert (response.status, response.all("sec-websocket-protocol")) == (500, [])
        peer.ends()


@pytest.mark.parametrize("line", ["Sec-WebSocket-Protocol:", "Sec-WebSocket-Protocol: "])
def test_an_empty_subprotocol_header_offers_nothing(server: Server, line: str) -> None:
    # Older releases of centrifuge-python send it.
    number = server.application.new_id()
    peer, response = server.ask(request(f"/scope?id={number}", line))
    with peer:
        assert response.status == 101
        assert server.application.event(number)["subprotocols"] == []


@pytest.mark.parametrize(
    "offer", ["permessage-deflate", "permessage-deflate; client_max_window_bits", "x-unknown; a=1"]
)
def test_extensions_that_are_not_spoken_are_not_answered(server: Server, offer: str) -> None:
    peer, response = server.ask(request("/", f"Sec-WebSocket-Extensions: {offer}"))
    with peer:
        assert (response.status, response.all("sec-websocket-extensions")) == (101, [])
        peer.send(frame(TEXT, b"x" * 1000))
        assert peer.text() == "x" * 1000


AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12"


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        (["permessage-deflate"], True),
        (["permessage-deflate; client_max_window_bits"], True),
        (["permessage-deflate; client_max_window_bits=15; server_no_context_takeover"], True),
        (['permessage-deflate; server_max_window_bits="12"'], True),
        (["PerMessage-Deflate;Client_No_Context_Takeover"], True),
        (["x-unknown, permessage-deflate"], True),
        (["x-unknown", "permessage-deflate"], True),
        # RFC 7692 §7.1: an offer with parameters that are unknown, misshapen or given twice is declined.
        (["permessage-deflate; server_max_window_bits=9"], False),
        (["permessage-deflate; server_max_window_bits=9, permessage-deflate"], True),
        (["permessage-deflate; server_max_window_bits=16"], False),
        (["permessage-deflate; server_max_window_bits"], False),
        (["permessage-deflate; client_max_window_bits=7"], False),
        (["permessage-deflate; client_max_window_bits=099"], False),
        (["permessage-deflate; server_no_context_takeover=1"], False),
        (["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], False),
        (["permessage-deflate; x-unknown"], False),
        (["permessage-deflate-not"], False),
    ],
)
async def test_compression_is_agreed_on_as_the_hub_makes_it(
    settings: Settings, offers: list[str], agreed: bool
) -> None:
    settings.HUB_WEBSOCKET_DEFLATE = True
    answer = await Direct(HubWebSocketProtocol).ask(
        request("/", *(f"Sec-WebSocket-Extensions: {offer}" for offer in offers))
    )
    assert answer is not None
    assert (answer.status, answer.all("sec-websocket-extensions")) == (101, [AGREED] if agreed else [])


# §4.2.2: refusals are ordinary responses


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_a_refusal_has_the_status_headers_and_body_of_the_application(server: Server, status: int) -> None:
    number = server.application.new_id()
    peer, response = server.ask(request(f"/refuse?id={number}&status={status}"))
    with peer:
        assert (response.status, response.body) == (status, b'{"full": true}')
        assert response.all("content-type") == ["application/json"]
        assert response.all("x-reason") == ["full"]
        assert response.all("set-cookie") == ["a=1", "b=2"]
        assert response.all("content-length") == ["14"]
        assert response.all("upgrade") == []
        peer.ends()
    assert server.application.event(number)["type"] == "websocket.disconnect"


def test_a_close_before_accept_is_a_403(server: Server) -> None:
    assert status_of(server, request("/deny")) == 403


@pytest.mark.parametrize("path", ["/fail", "/forget"])
def test_an_application_that_fails_or_answers_nothing_is_a_500(server: Server, path: str) -> None:
    with quiet():
        assert status_of(server, request(path)) == 500


# Before the answer


@pytest.mark.parametrize("then", ["echo", "session"])
def test_what_a_client_sends_before_the_answer_is_delivered_after_it(hub_server: Server, then: str) -> None:
    # uvicorn answers pings before the handshake, and delivers messages before accept.
    number = hub_server.application.new_id()
    with Peer(hub_server.port) as peer:
        peer.send(request(f"/gate?id={number}&then={then}"))
        assert hub_server.application.event(number) == "waiting"
        peer.send(frame(TEXT, b"first"), frame(PING, b"?"), frame(TEXT, b"second")[:5])
        # Whoever is answered after that was read after it.
        assert status_of(hub_server, request("/deny")) == 403
        hub_server.open_gate(number)
        assert peer.response().status == 101
        assert [peer.frame(), peer.frame()] in (
            [Frame(TEXT, b"first"), Frame(PONG, b"?")],
            [Frame(PONG, b"?"), Frame(TEXT, b"first")],
        )
        peer.send(frame(TEXT, b"second")[5:])
        assert peer.text() == "second"


def test_a_client_that_sends_too_much_before_the_answer_is_dropped(hub_server: Server) -> None:
    number = hub_server.application.new_id()
    with Peer(hub_server.port) as peer:
        peer.send(request(f"/gate?id={number}&then=echo"))
        assert hub_server.application.event(number) == "waiting"
        peer.send(frame(TEXT, b"x" * 65_000), frame(TEXT, b"x" * 65_000))
        peer.ends()
    hub_server.open_gate(number)
    eventually(lambda: hub_server.connections == 0)


async def test_messages_around_the_adoption_are_fed_in_their_order() -> None:
    # The fallback keeps for the application what came before the adoption.
    direct = Direct(HubWebSocketProtocol)
    direct.before_adoption = [frame(TEXT, b"1"), frame(TEXT, b"2")]
    direct.after_adoption = [frame(TEXT, b"3"), frame(TEXT, b"4")]
    await direct.open()
    assert direct.messages == ["1", "2", "3", "4"]
    direct.lost()


async def test_messages_before_the_adoption_are_fed_before_the_close_after_it() -> None:
    direct = Direct(HubWebSocketProtocol)
    direct.before_adoption = [frame(TEXT, b"1")]
    direct.after_adoption = [b"\x88\x80\x00\x00\x00\x00"]
    await direct.open()
    assert (direct.messages, direct.ends) == (["1"], 1)
    direct.lost()


@pytest.mark.parametrize("then", ["echo", "session", "refuse&status=404"])
def test_a_client_that_vanishes_before_the_answer_leaves_nothing(server: Server, then: str) -> None:
    number = server.application.new_id()
    peer = Peer(server.port)
    peer.send(request(f"/gate?id={number}&then={then}"))
    assert server.application.event(number) == "waiting"
    peer.vanish()
    eventually(lambda: server.connections == 0)
    server.open_gate(number)
    eventually(lambda: not server.server.server_state.tasks)


@pytest.mark.parametrize("websocket_class", CLASSES)
def test_a_server_that_stops_refuses_who_waits_for_an_answer(websocket_class: WebSocketClass) -> None:
    running = Server(websocket_class)
    number = running.application.new_id()
    with Peer(running.port) as peer:
        peer.send(request(f"/gate?id={number}&then=forget"))
        assert running.application.event(number) == "waiting"
        running.server.should_exit = True
        assert peer.response().status == (503 if websocket_class is HubWebSocketProtocol else 500)
        peer.ends()
    with quiet():
        running.open_gate(number)
        running.stop()
