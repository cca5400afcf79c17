"""The content security policy of every page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from pytest_django import Settings

from notifications.broadcasts.models import Broadcast
from notifications.broadcasts.services import publish_broadcast

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = ["/", "/chat/", "/chat/lobby/", "/alerts/", "/tasks/", "/activity/", "/lobby/", "/api/docs", "/no/such/page/"]
ADMIN = ["/admin/", "/admin/auth/user/", "/admin/hub_api/apikey/add/", "/admin/hub_audit/auditentry/"]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


class Markup(HTMLParser):
    """What of a page a policy is about: its scripts and style sheets, and attributes that are code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.code: list[dict[str, str | None]] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        is_data = attributes.get("type") == "application/json"
        if tag == "style" or (tag == "script" and not is_data):
            self.code.append(attributes)
        for name, value in attrs:
            if name == "style" or name.startswith("on") or (value or "").lstrip().lower().startswith("javascript:"):
                self.attributes.append(f"{tag} {name}={value}")


def policy_of(answer: HttpResponse) -> dict[str, list[str]]:
    """The sources by directive."""
    directives = (directive.split() for directive in answer.headers["Content-Security-Policy"].split(";"))
    return {name: sources for name, *sources in directives}


def nonce_of(policy: dict[str, list[str]]) -> str:
    found = re.fullmatch(r"'nonce-([\w-]{22,})'", policy["script-src"][0])
    assert found is not None, policy
    return found[1]


def expected(nonce: str) -> dict[str, list[str]]:
    return {
        "default-src": ["'self'"],
        "script-src": [f"'nonce-{nonce}'"],
        "style-src": ["'self'", f"'nonce-{nonce}'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "object-src": ["'none'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
    }


def assert_strict(answer: HttpResponse) -> None:
    policy, markup = policy_of(answer), Markup(answer.content.decode())
    nonce = nonce_of(policy)
    assert policy == expected(nonce)
    assert [attributes for attributes in markup.code if attributes.get("nonce") != nonce] == []
    assert markup.attributes == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_run_only_the_scripts_that_they_name(admin_client: Client, admin_user: User, page: str) -> None:
    publish_broadcast(broadcast=Broadcast(text="Maintenance"), by=admin_user)

    answer = admin_client.get(page)

    assert "<hub-banners>" in answer.content.decode()
    assert_strict(answer)


def test_so_does_the_login_page(client: Client) -> None:
    assert_strict(client.get("/accounts/login/?next=/chat/"))
    assert_strict(client.post("/accounts/login/", {"username": "ana", "password": "wrong"}))


def test_so_does_the_page_that_refuses(client: Client, django_user_model: type[User]) -> None:
    client.force_login(django_user_model.objects.create_user("ana"))

    answer = client.get("/activity/")

    assert answer.status_code == 403
    assert_strict(answer)


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken")


urlpatterns = [path("fail/", fail), path("", include("hub.urls"))]


@pytest.fixture
def _with_a_broken_page(settings: Settings) -> None:
    settings.ROOT_URLCONF = __name__


@pytest.mark.usefixtures("_with_a_broken_page")
def test_so_does_the_error_page() -> None:
    answer = Client(raise_request_exception=False).get("/fail/")

    assert answer.status_code == 500
    assert_strict(answer)


@pytest.mark.usefixtures("_with_a_broken_page")
async def test_so_do_pages_on_an_event_loop() -> None:
    client = AsyncClient(raise_request_exception=False)

    for page in ("/accounts/login/", "/fail/"):
        assert_strict(await client.get(page))


def test_each_answer_has_a_nonce_of_its_own(client: Client) -> None:
    nonces = {nonce_of(policy_of(client.get("/accounts/login/"))) for _ in range(5)}

    assert len(nonces) == 5


@pytest.mark.parametrize("page", ADMIN)
def test_the_admin_gets_what_its_theme_needs_and_no_inline_script(admin_client: Client, page: str) -> None:
    policy = policy_of(admin_client.get(page))

    nonce = nonce_of({"script-src": policy["script-src"][1:2]})
    assert policy == expected(nonce) | {
        "script-src": ["'self'", f"'nonce-{nonce}'", "'unsafe-eval'"],
        "style-src": ["'self'", "'unsafe-inline'"],
    }


def test_sockets_of_another_origin_may_be_opened(client: Client, settings: Settings) -> None:
    settings.HUB_CONNECTION_URL = "wss://sockets.example/connection/websocket"

    policy = policy_of(client.get("/accounts/login/"))

    assert policy["connect-src"] == ["'self'", "wss://sockets.example"]
