"""What surrounds the methods: keys, bad requests, problem documents, the OpenAPI document and its page."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection
from pytest_django import Settings

from notifications.api.asgi import api_application, identity_of_key
from notifications.api.methods import METHODS
from notifications.api.models import ApiKey
from notifications.api.services import change_api_key, create_api_key, revoke_api_key
from notifications.delivery.codes import INVALID_TOKEN, Disconnect
from notifications.delivery.stream import EventStream
from notifications.events import apublish
from notifications.events.threads import in_database_thread
from notifications.server.routing import PathRouter
from tests.api.conftest import KEY, client_of

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"channel": "open:1", "data": 1}


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, title and detail of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    return answer.status_code, document["title"], document["detail"]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-API-Key": KEY}, ""),
        ({"Authorization": f"apikey {KEY}"}, ""),
        ({"Authorization": f"ApiKey {KEY}"}, ""),
        ({}, f"?api_key={KEY}"),
    ],
)
async def test_a_key_may_come_in_three_places(stranger: httpx.AsyncClient, headers: dict[str, str], query: str) -> None:
    answer = await stranger.post(f"/api/publish{query}", json=BODY, headers=headers)

    assert answer.json()["result"]["offset"] == 1


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"Authorization": "Bearer x"}])
async def test_a_request_without_a_key_is_refused(stranger: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await stranger.post("/api/publish", json=BODY, headers=headers)

    assert problem(answer) == (
        401,
        "Unauthorized",
        "give an API key in the header X-API-Key; one is made with `manage.py apikey create NAME`",
    )
    assert answer.headers["www-authenticate"] == 'apikey realm="hub"'


@pytest.mark.parametrize("key", ["wrong", "hub_abcdefgh_0123456789", KEY[:-1], KEY + "x", "*", "ä"])
async def test_a_wrong_key_is_refused(stranger: httpx.AsyncClient, key: str) -> None:
    answer = await stranger.post("/api/publish", json=BODY, headers={"X-API-Key": key.encode()})

    assert problem(answer) == (401, "Unauthorized", "the API key is not valid, or was revoked")


async def test_an_empty_key_of_the_environment_opens_nothing(stranger: httpx.AsyncClient, settings: Settings) -> None:
    settings.HUB_API_KEYS = [""]

    for query in ("", "?api_key="):
        assert (await stranger.post(f"/api/publish{query}", json=BODY)).status_code == 401


async def test_a_key_reaches_the_topics_of_its_patterns(stranger: httpx.AsyncClient) -> None:
    _, text = await in_database_thread(create_api_key, name="Shop", patterns=["open:1?", "ledger:*"])
    headers = {"X-API-Key": text, "X-Centrifugo-Error-Mode": "transport"}
    forbidden = {
        "error": {
            "code": 103,
            "message": "permission denied: the key's topics do not include this one",
        }
    }

    async def publish(topic: str) -> httpx.Response:
        return await stranger.post("/api/publish", json={"channel": topic, "data": 1}, headers=headers)

    assert (await publish("open:12")).json()["result"]["offset"] == 1
    assert (await publish("ledger:a:b")).json()["result"]["offset"] == 1
    for topic in ("open:1", "open:123", "chat:1", "nobody:declared"):
        answer = await publish(topic)
        assert (answer.status_code, answer.json()) == (403, forbidden)
    for method in ("history", "history_remove", "presence", "presence_stats", "subscribe", "unsubscribe"):
        answer = await stranger.post(f"/api/{method}", json={"channel": "open:1", "user": "7"}, headers=headers)
        assert (answer.status_code, answer.json()) == (403, forbidden)
    answer = await stranger.post("/api/broadcast", json={"channels": ["open:12", "open:1"], "data": 2}, headers=headers)
    first, second = answer.json()["result"]["responses"]
    assert first["result"]["offset"] == 2
    assert second == forbidden


@pytest.mark.parametrize("patterns", [["open:*"], ["??*", "*:*"]])
async def test_what_is_about_users_needs_a_key_for_every_topic(
    stranger: httpx.AsyncClient, patterns: list[str], price: str
) -> None:
    _, limited = await in_database_thread(create_api_key, name="Shop", patterns=patterns)
    _, full = await in_database_thread(create_api_key, name="All", patterns=["open:*", "*"])
    forbidden = {
        "error": {
            "code": 103,
            "message": "permission denied: this needs a key for every topic, whose patterns include *",
        }
    }

    for method, body in (
        ("disconnect", {"user": "7"}),
        ("refresh", {"user": "7"}),
        ("rpc", {"method": price, "params": {"product": 1}}),
    ):
        refused, allowed = [
            await stranger.post(f"/api/{method}", json=body, headers={"X-API-Key": key}) for key in (limited, full)
        ]
        assert (refused.status_code, refused.json()) == (200, forbidden)
        assert list(allowed.json()) == ["result"]
    commands = {"commands": [{"disconnect": {"user": "7"}}, {"publish": {"channel": "open:1", "data": 1}}]}
    batch = await stranger.post("/api/batch", json=commands, headers={"X-API-Key": limited})
    denied, published = batch.json()["replies"]
    assert denied == forbidden
    assert published["publish"]["offset"] == 1


async def test_a_revocation_is_seen_within_a_second(stranger: httpx.AsyncClient) -> None:
    key, text = await in_database_thread(create_api_key, name="Shop", patterns=["*"])
    headers = {"X-API-Key": text}
    assert (await stranger.post("/api/info", json={}, headers=headers)).status_code == 200

    await in_database_thread(revoke_api_key, key=key)

    revoked_at = time.monotonic()
    while (await stranger.post("/api/info", json={}, headers=headers)).status_code == 200:
        assert time.monotonic() < revoked_at + 1
        await asyncio.sleep(0.02)
    assert (await stranger.post("/api/info", json={}, headers=headers)).status_code == 401


async def test_the_use_of_a_key_is_noted(stranger: httpx.AsyncClient) -> None:
    key, text = await in_database_thread(create_api_key, name="Shop", patterns=["*"])

    await stranger.post("/api/info", json={}, headers={"X-API-Key": text})

    noted = await ApiKey.objects.aget(pk=key.pk)
    assert noted.last_used_at is not None
    assert noted.last_used_at > noted.created_at


async def test_a_revocation_ends_the_streams_of_the_key(settings: Settings) -> None:
    from notifications.delivery.switchboard import stop_current

    key, text = await in_database_thread(create_api_key, name="Shop", patterns=["ledger:*"])
    event = await apublish("ledger:1", "order.paid", {"amount": 12})
    received: list[bytes] = []
    opened = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        received.append(message.get("body", b""))
        if b"order.paid" in b"".join(received):
            opened.set()
        if message["type"] == "http.response.body" and not message["more_body"]:
            closed.set()

    closed = asyncio.Event()
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/events",
        "query_string": f"topic=ledger:1&since={event.epoch}:0".encode(),
        "headers": [(b"x-api-key", text.encode())],
    }
    stream = asyncio.create_task(EventStream(identify=identity_of_key)(scope, receive, send))
    await asyncio.wait_for(opened.wait(), 5)

    await in_database_thread(revoke_api_key, key=key)

    await asyncio.wait_for(closed.wait(), 5)
    assert b": closed, 3500 invalid token\n" in b"".join(received)
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)
    await stop_current()


async def test_identities_of_keys() -> None:
    def scope(key: str | None) -> dict[str, Any]:
        return {"headers": [] if key is None else [(b"x-api-key", key.encode())], "query_string": b""}

    _, text = await in_database_thread(create_api_key, name="Shop", patterns=["open:*", "ledger:1"])

    assert await identity_of_key(scope(None)) is None
    stored = await identity_of_key(scope(text))
    assert stored is not None
    assert (stored.user, stored.grants) == ("", ("open:*", "ledger:1"))
    configured = await identity_of_key(scope(KEY))
    assert configured is not None
    assert configured.grants == ("*",)
    with pytest.raises(Disconnect) as wrong:
        await identity_of_key(scope("wrong"))
    assert wrong.value.code is INVALID_TOKEN


async def test_other_topics_of_a_key_count_at_once_or_nearly(stranger: httpx.AsyncClient) -> None:
    key, text = await in_database_thread(create_api_key, name="Shop", patterns=["open:*"])
    await in_database_thread(change_api_key, key=key, name="Shop", patterns=["ledger:*"])

    answer = await stranger.post("/api/publish", json=BODY, headers={"X-API-Key": text})

    assert answer.json()["error"]["code"] == 103


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "the body is not JSON: Input data was truncated"),
        (b'{"channel": ', "the body is not JSON: Input data was truncated"),
        (b"channel=open:1", "the body is not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"[1]", "the body is JSON, but not an object"),
        (b'"text"', "the body is JSON, but not an object"),
        (b"null", "the body is JSON, but not an object"),
    ],
)
async def test_a_body_that_is_not_an_object_is_a_problem(api: httpx.AsyncClient, body: bytes, detail: str) -> None:
    answer = await api.post("/api/publish", content=body)

    assert problem(answer) == (400, "Bad Request", detail)


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b"[" * 50_000, b'{"a": NaN}', b'{"a": 1}{"a": 1}', b'{"a": 1e999}'])
async def test_no_body_breaks_the_api(api: httpx.AsyncClient, body: bytes) -> None:
    answer = await api.post("/api/publish", content=body)

    status, title, detail = problem(answer)
    assert (status, title) == (400, "Bad Request")
    assert detail.startswith("the body is not JSON: ")


async def test_numbers_beyond_64_bits_keep_their_digits(api: httpx.AsyncClient) -> None:
    await api.post("/api/publish", content=b'{"channel": "ledger:1", "data": 123456789012345678901234567890}')

    answer = await api.post("/api/history", json={"channel": "ledger:1", "limit": 1})
    assert '"data":123456789012345678901234567890,' in answer.text


@pytest.mark.parametrize(("method", "events"), [("publish", 1), ("subscribe", 1), ("broadcast", 16), ("batch", 16)])
async def test_a_large_body_is_a_problem(api: httpx.AsyncClient, method: str, events: int) -> None:
    most = events * (65_536 * 4 // 3 + 16_384)
    head, tail = b'{"channel": "open:1", "data": "', b'"}'

    async def chunks() -> Any:
        yield head
        for _ in range(most // 1_024 + 1):
            yield b"x" * 1_024

    fits = await api.post(f"/api/{method}", content=head + b"x" * (most - len(head + tail)) + tail)
    too_large = await api.post(f"/api/{method}", content=b"x" * (most + 1))
    without_length = await api.post(f"/api/{method}", content=chunks())

    assert fits.json()["error"]["code"] == 107
    expected = (413, "Request Entity Too Large", f"the body has more than {most} bytes")
    assert problem(too_large) == expected
    assert problem(without_length) == expected


async def test_the_largest_data_fits_in_base64_too(api: httpx.AsyncClient) -> None:
    encoded = base64.b64encode(b'"' + b"x" * 65_534 + b'"').decode()

    answer = await api.post("/api/publish", json={"channel": "open:1", "b64data": encoded})

    assert answer.json()["result"]["offset"] == 1


async def test_unknown_methods_are_a_problem(api: httpx.AsyncClient) -> None:
    for path in ("nothing", "publish/more", "connections"):
        answer = await api.post(f"/api/{path}", json={})
        status, title, detail = problem(answer)
        assert (status, title) == (404, "Not Found")
        assert detail == f"there is no method {path!r}; there are {', '.join(METHODS)}"
        assert answer.json()["error"] == {"code": 104, "message": "method not found"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/publish", "POST"),
        ("PUT", "/api/info", "POST"),
        ("GET", "/api", "POST"),
        ("POST", "/api/openapi.json", "GET, HEAD"),
    ],
)
async def test_the_wrong_http_method_is_a_problem(api: httpx.AsyncClient, method: str, path: str, allow: str) -> None:
    answer = await api.request(method, path)

    status, title, _ = problem(answer)
    assert (status, title) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == allow


async def test_a_failure_is_told_without_its_traceback(
    stranger: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    def drop() -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE hub_api_apikey RENAME TO hub_api_gone")

    def restore() -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE hub_api_gone RENAME TO hub_api_apikey")

    await in_database_thread(drop)
    try:
        answer = await stranger.post("/api/publish", json=BODY, headers={"X-API-Key": "any"})
    finally:
        await in_database_thread(restore)

    assert problem(answer) == (503, "Service Unavailable", "the API key cannot be looked up now; try again")
    assert "hub_api_apikey" in caplog.text


async def test_the_openapi_document_describes_every_method(stranger: httpx.AsyncClient) -> None:
    answer = await stranger.get("/api/openapi.json")

    assert answer.status_code == 200
    document = answer.json()
    assert document["openapi"] == "3.1.0"
    assert sorted(document["paths"]) == sorted(f"/api/{name}" for name in METHODS)
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))
    assert references <= set(document["components"]["schemas"])
    assert {"PublishRequest", "PublishResult", "Error", "Problem", "Publication"} <= references
    operations = [path["post"] for path in document["paths"].values()]
    assert len({operation["operationId"] for operation in operations}) == len(METHODS)
    for operation in operations:
        assert operation["summary"]
        assert set(operation["responses"]) == {"200", "400", "401", "403", "404", "413", "416", "429", "500", "503"}
    publish = document["components"]["schemas"]["PublishRequest"]
    assert publish["required"] == ["channel"]
    assert publish["properties"]["channel"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "description": "Name of a topic.",
    }


async def test_the_page_shows_every_method_to_anybody() -> None:
    django = get_asgi_application()
    application = PathRouter({"/api/docs": django, "/api": api_application}, django)
    async with client_of(application, headers={"Host": "localhost"}) as client:
        answer = await client.get("/api/docs")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    for name in METHODS:
        assert f"POST /api/{name}" in answer.text
    command = (
        "curl -H &quot;X-API-Key: $HUB_API_KEY&quot; \\\n  -d &#x27;{&quot;channel&quot;: &quot;chat:lobby&quot;, "
    )
    assert command in answer.text
    assert "http://localhost/api/publish" in answer.text
    assert "style=" not in answer.text


def test_a_key_is_made_and_revoked_in_the_admin(client: Any, admin_user: User) -> None:
    client.force_login(admin_user)

    answer = client.post("/admin/hub_api/apikey/add/", {"name": "Shop", "patterns": "orders:*\nusers:?"}, follow=True)

    assert answer.status_code == 200
    (shown,) = re.findall(r"hub_[A-Za-z0-9]{8}_[A-Za-z0-9]{40}", answer.content.decode())
    key = ApiKey.objects.get()
    assert (key.name, key.patterns, key.created_by) == ("Shop", "orders:*\nusers:?", admin_user)
    assert shown.startswith(f"hub_{key.prefix}_")
    page = client.get(f"/admin/hub_api/apikey/{key.pk}/change/").content.decode()
    assert key.hash not in page
    assert shown not in page

    form = {"name": "Shop", "patterns": "orders:*", "hub_api_apikey_revoke_one": ""}
    client.post(f"/admin/hub_api/apikey/{key.pk}/change/", form, follow=True)
    key.refresh_from_db()
    assert key.patterns == "orders:*"
    assert key.revoked_at is not None


def test_the_admin_refuses_what_is_not_a_pattern(client: Any, admin_user: User) -> None:
    client.force_login(admin_user)

    answer = client.post("/admin/hub_api/apikey/add/", {"name": "Shop", "patterns": "orders:[ab]"})

    assert answer.status_code == 200
    assert "is not a pattern of topics" in answer.content.decode()
    assert ApiKey.objects.count() == 0


def test_selected_keys_are_revoked_in_the_admin(client: Any, admin_user: User) -> None:
    client.force_login(admin_user)
    keys = [create_api_key(name=name, patterns=["*"])[0] for name in ("a", "b", "c")]

    client.post(
        "/admin/hub_api/apikey/",
        {"action": "revoke_selected", "_selected_action": [keys[0].pk, keys[2].pk]},
        follow=True,
    )

    assert [key.revoked_at is not None for key in ApiKey.objects.order_by("pk")] == [True, False, True]
