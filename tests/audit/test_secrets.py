"""Keys, tokens and passwords stay out of the log of a running hub, and out of what it answers."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.servers import Hub, eventually

KEY = "the-right-key-of-one-run"
WRONG = "a-wrong-key-that-somebody-tried"
METRICS = "the-token-of-the-metrics"
SECRET = "the-secret-that-signs-the-tokens-of-one-run"
PASSWORD = "a-password-with-a-typing-error"
OWN = "notifications.server.websocket:HubWebSocketProtocol"
UVICORNS = "notifications.server.sansio:SansIOWebSocketProtocol"
PATHS = ["/", "/alerts/", "/no/such/page", "/metrics", "/hooks/alertmanager", "/api/info"]
BREAK = "from django.db import connection; connection.cursor().execute('ALTER TABLE hub_alerts_alert RENAME TO gone')"

pytestmark = pytest.mark.timeout(120)


def ask(hub: Hub, token: str) -> list[httpx.Response]:
    """Requests that carry secrets in each of the places where a client may put them, right and wrong."""
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=hub.url) as client:
        for secret in (KEY, WRONG, token, token + "x"):
            connecting = quote(json.dumps({"connect": {"token": secret}}))
            credentials: list[tuple[str, dict[str, str]]] = [
                (f"api_key={secret}", {}),
                (f"token={secret}", {}),
                (f"cf_connect={connecting}", {}),
                ("", {"X-API-Key": secret}),
                ("", {"Authorization": f"apikey {secret}"}),
                ("", {"Authorization": f"Bearer {secret}"}),
            ]
            for query, headers in credentials:
                answers.extend(client.get(f"{path}?{query}", headers=headers) for path in PATHS)
                answers.append(client.get(f"/chat/x/?{query}", headers={**headers, "Host": "elsewhere.example"}))
                answers.append(client.post(f"/accounts/logout/?{query}", headers=headers, data={"token": secret}))
                for path in ("/api/publish", "/api/no-such-method", "/hooks/alertmanager"):
                    answers.append(client.post(f"{path}?{query}", headers=headers, json={"channel": "open:x"}))
                    answers.append(client.post(f"{path}?{query}", headers=headers, content=b"{"))
                with client.stream("GET", f"/events?topic=no-such:topic&{query}", headers=headers) as stream:
                    if stream.status_code != 200:
                        stream.read()
                        answers.append(stream)
        answers.append(client.get("/metrics", headers={"Authorization": f"Bearer {METRICS}"}))
        client.get("/accounts/login/")
        form = {"username": "admin", "password": PASSWORD, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        answers.append(client.post("/accounts/login/", data=form, headers={"Referer": hub.url}))
    return answers


async def ask_over_websockets(hub: Hub, token: str) -> None:
    address = hub.url.replace("http", "ws", 1)
    for secret in (KEY, WRONG, token, token + "x"):
        query = f"api_key={secret}&token={secret}&cf_connect={quote(json.dumps({'token': secret}))}"
        for command in (
            {"id": 1, "connect": {"token": secret}},
            {"id": 1, "subscribe": {"channel": "open:x", "token": secret}},
            {"id": "one", "connect": {"token": [secret]}},
        ):
            async with connect(f"{address}/connection/websocket?{query}") as socket:
                await socket.send(json.dumps(command))
                with suppress(ConnectionClosed):  # the hub answers, or closes
                    await socket.recv()
        for path in ("/no/such/socket", "/ws/chat/x/"):
            headers = {"Authorization": f"Bearer {secret}", "Origin": "http://elsewhere.example"}
            with suppress(InvalidStatus):
                async with connect(f"{address}{path}?{query}", additional_headers=headers):
                    pass


@pytest.mark.parametrize(("level", "websockets"), [("INFO", OWN), ("DEBUG", OWN), ("DEBUG", UVICORNS)])
async def test_no_secret_is_logged_or_answered(tmp_path: Path, level: str, websockets: str) -> None:
    hub = Hub(
        tmp_path,
        HUB_API_KEYS=KEY,
        HUB_TOKEN_SECRET=SECRET,
        HUB_METRICS_TOKEN=METRICS,
        HUB_WEBSOCKET_CLASS=websockets,
        LOG_LEVEL=level,
    )
    token = jwt.encode({"sub": "ana", "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")
    session = hub.sign_in()

    answers = ask(hub, token)
    await ask_over_websockets(hub, token)
    hub.command("shell", "-v", "0", "-c", BREAK)
    headers = {"X-API-Key": KEY, "Authorization": f"Bearer {token}", "Cookie": f"sessionid={session}"}
    async with httpx.AsyncClient(headers=headers) as client:
        failed = await client.get(f"{hub.url}/alerts/?api_key={KEY}&token={token}")

    eventually(lambda: "Internal Server Error: /alerts/" in hub.output)
    assert failed.status_code == 500
    hub.stop()
    secrets = [KEY, WRONG, METRICS, SECRET, PASSWORD, Hub.PASSWORD, session, token, token.rpartition(".")[2]]
    leaks = [(secret, line) for secret in secrets for line in hub.output.splitlines() if secret in line]
    assert leaks == []
    answered = [
        (secret, answer.url.path) for secret in secrets for answer in [*answers, failed] if secret in answer.text
    ]
    assert answered == []
