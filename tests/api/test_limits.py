"""How often a key may be used, and how deep what it sends may nest."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from notifications.api.asgi import api_application
from notifications.events.threads import in_database_thread
from tests.api.conftest import client_of

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"channel": "open:1", "data": 1}


@pytest.fixture
def key() -> str:
    """A key that was not used yet."""
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _limited(settings: Settings, key: str) -> None:
    settings.HUB_API_KEYS = [key, f"{key}2"]
    # So slow that nothing flows in while a test runs.
    settings.HUB_MAX_API_REQUESTS_PER_SECOND = 0.01


async def post(key: str, method: str = "publish", body: dict[str, Any] | bytes = b"") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(api_application, headers={"X-API-Key": key}) as client:
        return await client.post(f"/api/{method}", content=content or json.dumps(BODY).encode())


def seconds_to_wait(answer: httpx.Response) -> int:
    """What the refusal of a request says."""
    assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json")
    assert answer.json() == {
        "title": "Too Many Requests",
        "status": 429,
        "detail": "this key may be used 0.01 times a second; try again later",
        "error": {"code": 111, "message": "too many requests"},
    }
    return int(answer.headers["retry-after"])


async def test_a_key_that_is_used_too_often_has_to_wait(key: str) -> None:
    first, second, of_another = [await post(name) for name in (key, key, f"{key}2")]

    assert first.json()["result"]["offset"] == 1
    assert 90 <= seconds_to_wait(second) <= 100
    assert of_another.json()["result"]["offset"] == 2


async def test_what_one_second_allows_may_come_at_once(key: str, settings: Settings) -> None:
    settings.HUB_MAX_API_REQUESTS_PER_SECOND = 3
    statuses = []

    while 429 not in statuses:
        statuses.append((await post(key)).status_code)
        assert len(statuses) < 500

    assert statuses[:3] == [200, 200, 200]


async def test_server_processes_share_the_rate_of_a_key(key: str, settings: Settings, redis_url: str) -> None:
    first = await post(key)
    settings.HUB_REDIS_URL = redis_url
    second, third = await post(key, "info", b"{}"), await post(key, "info", b"{}")

    # The memory of this process does not count, as it would not in another.
    assert (first.status_code, second.status_code) == (200, 200)
    assert 90 <= seconds_to_wait(third) <= 100


async def test_each_channel_of_a_broadcast_counts(key: str) -> None:
    names = [f"open:{number}" for number in range(5)]

    answer = await post(key, "broadcast", {"channels": names, "data": 1})

    assert len(answer.json()["result"]["responses"]) == 5
    assert 490 <= seconds_to_wait(await post(key)) <= 500


async def test_each_command_of_a_batch_counts(key: str) -> None:
    commands = [{"publish": BODY}, {"broadcast": {"channels": ["open:1", "open:2"], "data": 1}}, {"info": {}}]

    await post(key, "batch", {"commands": commands})

    assert 390 <= seconds_to_wait(await post(key)) <= 400


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("broadcast", {"channels": "open:1", "data": 1}),
        ("broadcast", {}),
        ("batch", {"commands": {}}),
        ("batch", {"commands": [1, {}, None]}),
        ("batch", {"commands": [{"broadcast": [1]}]}),
        ("publish", {"channel": 1}),
    ],
)
async def test_a_request_that_is_not_valid_counts_as_one(key: str, method: str, body: dict[str, Any]) -> None:
    assert (await post(key, method, body)).status_code == 200

    assert 90 <= seconds_to_wait(await post(key)) <= 100


async def test_a_limit_is_not_asked_of_who_has_no_key(key: str) -> None:
    for _ in range(3):
        assert (await post("wrong")).status_code == 401
    assert (await post(key)).status_code == 200


async def test_a_webhook_is_asked_to_come_again_with_a_503(key: str) -> None:
    """Alertmanager never repeats what was answered with a 429."""

    def deliver() -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        return Client().post("/hooks/alertmanager", {"alerts": []}, "application/json", headers=headers)

    first, second = [await in_database_thread(deliver) for _ in range(2)]

    assert json.loads(first.content) == {"received": 0}
    assert (second.status_code, second.headers["Content-Type"]) == (503, "application/problem+json")
    assert 90 <= int(second.headers["Retry-After"]) <= 100
    assert json.loads(second.content)["detail"] == (
        "This API key may be used 0.01 times a second. Send the alerts again later."
    )
    assert 90 <= seconds_to_wait(await post(key)) <= 100  # the key's rate is one, wherever it is used


async def test_a_body_nests_as_deep_as_the_setting_says(key: str, settings: Settings) -> None:
    settings.HUB_MAX_API_REQUESTS_PER_SECOND = 0

    def nested(levels: int) -> bytes:
        return b'{"channel": "open:1", "data": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert (await post(key, body=nested(32))).json()["result"]["offset"] == 1
    answer = await post(key, body=nested(33))
    assert (answer.status_code, answer.json()["detail"]) == (400, "the body is JSON, but nests deeper than 32 levels")
    settings.HUB_MAX_JSON_DEPTH = 33
    assert (await post(key, body=nested(33))).json()["result"]["offset"] == 2
