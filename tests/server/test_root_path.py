"""A hub that a proxy serves under a path of its own, which some proxies take off the paths of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.servers import Hub


@pytest.fixture(scope="module")
def hub_under_a_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"), HUB_ROOT_PATH="/live/hub/", HUB_API_KEYS="a key of one test run")
    yield hub
    hub.stop()


@pytest.mark.parametrize("prefix", ["", "/live/hub"], ids=["taken off", "kept"])
def test_pages_link_to_where_the_proxy_has_them(hub_under_a_path: Hub, prefix: str) -> None:
    with httpx.Client(base_url=hub_under_a_path.url + prefix) as client:
        redirected = client.get("/alerts/")
        page = client.get("/accounts/login/").text
        style = client.get("/static/hub/hub.css")
        lost = client.get("/nothing/here/", headers={"Accept": "text/html"})

    assert redirected.headers["location"] == "/live/hub/accounts/login/?next=/live/hub/alerts/"
    assert '"connection": "/live/hub/connection/websocket"' in page
    assert 'href="/live/hub/static/hub/hub.css"' in page
    assert (style.status_code, style.headers["content-type"]) == (200, 'text/css; charset="utf-8"')
    assert (lost.status_code, 'href="/live/hub/"' in lost.text) == (404, True)


@pytest.mark.parametrize("prefix", ["", "/live/hub"], ids=["taken off", "kept"])
def test_sockets_and_the_api_are_there(hub_under_a_path: Hub, prefix: str) -> None:
    with connect(f"ws://{hub_under_a_path.address}{prefix}/connection/websocket") as socket:
        socket.send('{"id":1,"connect":{}}')
        assert json.loads(socket.recv(timeout=10))["connect"]["ping"] == 25
    headers = {"X-API-Key": "a key of one test run"}
    answer = httpx.post(f"{hub_under_a_path.url}{prefix}/api/info", json={}, headers=headers)
    assert len(answer.json()["result"]["nodes"]) == 1
