"""An administrator lists and ends sessions: services, the command `sessions` and the admin."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session as DjangoSession
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from notifications.audit.models import AuditEntry
from notifications.delivery.auth import login_of
from notifications.delivery.codes import FORCE_NO_RECONNECT
from notifications.delivery.identity import Identity
from notifications.delivery.selectors import still_live, user_id_of
from notifications.delivery.services import end_sessions
from notifications.delivery.switchboard import Switchboard
from notifications.events.threads import in_database_thread
from tests.delivery.processes import connected, ids, told
from tests.servers import Hub

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/hub_delivery/livesession/"


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


async def signed_in(user: User) -> str:
    """The key of a new Django session of a user."""

    def sign_in() -> str:
        session = SessionStore()
        session["_auth_user_id"] = str(user.pk)
        session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
        session["_auth_user_hash"] = user.get_session_auth_hash()
        session.create()
        return str(session.session_key)

    return await in_database_thread(sign_in)


def of(user: User, key: str = "") -> Identity:
    """The identity of a user in a Django session."""
    return Identity(user=str(user.pk), info={"name": user.username}, login=login_of(key) if key else "")


async def test_all_sessions_of_a_user_are_ended(switchboards: list[Switchboard]) -> None:
    first, second = switchboards
    user = await User.objects.acreate_user("ana")
    anas = [await connected(switchboard, of(user)) for switchboard in switchboards]
    bob = await connected(first, Identity(user="bob", from_token=True))
    await told(first, second)

    ended = await in_database_thread(lambda: end_sessions(user=str(user.pk)))

    assert ids(ended) == {ana.session.id for ana in anas}
    assert [await ana.closed_by_hub() for ana in anas] == [FORCE_NO_RECONNECT] * 2
    assert await asyncio.to_thread(still_live, ended) == []
    assert bob.open


async def test_one_client_is_ended(switchboards: list[Switchboard]) -> None:
    user = await User.objects.acreate_user("ana")
    ended, stays = [await connected(switchboard, of(user)) for switchboard in switchboards]
    await told(*switchboards)

    await in_database_thread(lambda: end_sessions(client=ended.session.id))

    assert await ended.closed_by_hub() == FORCE_NO_RECONNECT
    assert stays.open


async def test_a_user_is_signed_out_everywhere(switchboards: list[Switchboard]) -> None:
    ana, bob = await User.objects.acreate_user("ana"), await User.objects.acreate_user("bob")
    keys = [await signed_in(ana), await signed_in(ana)]
    bobs = await signed_in(bob)
    client = await connected(switchboards[0], of(ana, keys[0]))
    await told(*switchboards)

    await in_database_thread(lambda: end_sessions(user=str(ana.pk), sign_out=True))

    assert await client.closed_by_hub() == FORCE_NO_RECONNECT  # and not the advice to come back
    assert [key async for key in DjangoSession.objects.values_list("pk", flat=True)] == [bobs]


async def test_the_browser_of_one_client_is_signed_out(switchboards: list[Switchboard]) -> None:
    ana = await User.objects.acreate_user("ana")
    here, elsewhere = await signed_in(ana), await signed_in(ana)
    clients = [await connected(switchboards[0], of(ana, key)) for key in (here, elsewhere)]
    await told(*switchboards)

    await in_database_thread(lambda: end_sessions(client=clients[0].session.id, sign_out=True))

    assert await clients[0].closed_by_hub() == FORCE_NO_RECONNECT
    assert clients[1].open
    assert [key async for key in DjangoSession.objects.values_list("pk", flat=True)] == [elsewhere]


async def test_what_is_ended_is_in_the_audit_log(switchboards: list[Switchboard]) -> None:
    ana, admin = await User.objects.acreate_user("ana"), await User.objects.acreate_superuser("admin")
    client = await connected(switchboards[0], of(ana, await signed_in(ana)))
    await told(*switchboards)

    await in_database_thread(lambda: end_sessions(client=client.session.id, sign_out=True, by=admin))
    await in_database_thread(lambda: end_sessions(client="unknown", by=admin))

    entry = await AuditEntry.objects.select_related("actor").aget(action="session.ended")
    assert (entry.subject, entry.actor) == ("ana", admin)
    assert entry.details == {
        "user": str(ana.pk),
        "sessions": 1,
        "signed_out": 1,
        "client": client.session.id,
        "address": "",
    }


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "Name the user or the client"),
        ({"user": ""}, "Name the user or the client"),
        ({"user": "7", "client": "of somebody else"}, "of somebody else is no client of the user 7"),
        ({"client": "unknown", "sign_out": True}, "unknown is not signed in with a Django session"),
    ],
)
def test_what_cannot_be_ended(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        end_sessions(**named)


def test_sessions_that_are_not_in_the_database_cannot_be_searched(settings: Settings) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    with pytest.raises(ValidationError, match="signed_cookies cannot list sessions"):
        end_sessions(user="7", sign_out=True)


def test_a_user_is_found_by_name_and_by_id() -> None:
    ana = User.objects.create_user("ana")

    assert [user_id_of("ana"), user_id_of(str(ana.pk)), user_id_of("a subject of tokens")] == [
        str(ana.pk),
        str(ana.pk),
        "a subject of tokens",
    ]


# The command, beside a running hub.


class Visit(NamedTuple):
    """A connected client: its socket, its id and the cookie with which it is signed in."""

    socket: ClientConnection
    client: str
    cookie: str


@pytest.fixture
async def ana(hub: Hub) -> AsyncIterator[Visit]:
    """Ana, connected to the hub."""
    cookie = await asyncio.to_thread(hub.sign_in, "ana")
    headers = {"Origin": hub.url, "Cookie": f"sessionid={cookie}"}
    async with connect(f"ws://{hub.address}/connection/websocket", additional_headers=headers) as socket:
        await socket.send(json.dumps({"id": 1, "connect": {}}))
        reply = json.loads(await socket.recv())
        yield Visit(socket, reply["connect"]["client"], cookie)


def refused(hub: Hub, *arguments: str) -> str:
    """What a command that fails says."""
    done = subprocess.run(
        [sys.executable, "-m", "hub", *arguments],
        cwd=hub.folder,
        env=hub.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    return done.stderr


async def closing_code(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closing:
        async with asyncio.timeout(10):
            while True:
                await socket.recv()
    assert closing.value.rcvd is not None
    return closing.value.rcvd.code


async def test_the_command_lists_and_ends(hub: Hub, ana: Visit) -> None:
    listed = await asyncio.to_thread(hub.command, "sessions", "--user", "ana")
    ended = await asyncio.to_thread(hub.command, "sessions", "--user", "ana", "--end")

    head, line = listed.splitlines()
    assert re.split(r"  +", head)[:4] == ["CLIENT", "USER", "NAME", "SIGNED IN WITH"]
    assert re.split(r"  +", line)[0] == ana.client
    assert re.split(r"  +", line)[2:4] == ["ana", "login"]
    assert ended == "1 session of ana ended.\n"
    assert await closing_code(ana.socket) == 3503
    again = await asyncio.to_thread(refused, hub, "sessions", "--user", "ana", "--end")
    assert "ana has no live session; `manage.py sessions` shows who has" in again


async def test_the_command_signs_out_the_browser_of_a_client(hub: Hub, ana: Visit) -> None:
    ended = await asyncio.to_thread(hub.command, "sessions", "--client", ana.client, "--end", "--sign-out")

    assert ended == f"1 session of {ana.client} ended, and the user has to sign in again.\n"
    assert await closing_code(ana.socket) == 3503
    async with httpx.AsyncClient(cookies={"sessionid": ana.cookie}) as browser:
        answer = await browser.get(f"{hub.url}/chat/")
    assert answer.headers["location"] == "/accounts/login/?next=/chat/"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--end",), "--end needs --user or --client"),
        (("--user", "ana", "--sign-out"), "--sign-out goes with --end"),
        (("--end", "--client", "unknown"), "unknown has no live session"),
        (("--end", "--user", "7", "--client", "unknown"), "unknown is no client of the user 7"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        call_command("sessions", *arguments)


def test_the_command_says_that_no_hub_answers(settings: Settings, tmp_path: Any) -> None:
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")

    with pytest.raises(CommandError, match=r"no hub process answers on .*/hub\.sock"):
        call_command("sessions")


# The admin.


def staff(name: str, *permissions: str) -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


async def test_the_admin_lists_and_ends(switchboards: list[Switchboard]) -> None:
    admin = await User.objects.acreate_superuser("admin")
    ana = await User.objects.acreate_user("ana")
    client, visitor = await connected(switchboards[0], of(ana)), await connected(switchboards[1])
    await told(*switchboards)
    browser = Client()
    await in_database_thread(browser.force_login, admin)

    everybody = await in_database_thread(browser.get, ADMIN)
    page = await in_database_thread(browser.get, f"{ADMIN}?user=ana")
    form = {"client": client.session.id, "asked": "ana"}
    ending = in_database_thread(lambda: browser.post(f"{ADMIN}end/", form, follow=True))
    ended, _ = await asyncio.gather(ending, told_until_closed(client, switchboards))

    assert [row["session"].id for row in page.context["rows"]] == [client.session.id]
    assert {row["session"].id for row in everybody.context["rows"]} == {client.session.id, visitor.session.id}
    assert f'href="/admin/auth/user/{ana.pk}/change/"' in page.content.decode()
    assert ended.redirect_chain == [(f"{ADMIN}?user=ana", 302)]
    assert [str(message) for message in ended.context["messages"]] == ["1 session was ended."]
    assert ended.context["rows"] == []
    assert await client.closed_by_hub() == FORCE_NO_RECONNECT
    assert visitor.open


async def told_until_closed(client: Any, switchboards: list[Switchboard]) -> None:
    await client.closed_by_hub()
    await told(*switchboards)


def test_staff_needs_a_permission_to_see_and_another_to_end(client: Client) -> None:
    client.force_login(staff("nobody"))
    assert client.get(ADMIN).status_code == 403

    client.force_login(staff("reader", "view_livesession"))
    assert client.get(ADMIN).context["may_end"] is False
    assert client.post(f"{ADMIN}end/", {"user": "7"}).status_code == 403

    client.force_login(staff("guard", "view_livesession", "end_session"))
    assert client.get(ADMIN).context["may_end"] is True
    assert client.post(f"{ADMIN}end/", {"user": "7"}).status_code == 302


def test_nothing_is_ended_by_a_link_or_a_foreign_form(admin_user: User) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)

    assert browser.get(f"{ADMIN}end/?user=7").status_code == 405
    assert browser.post(f"{ADMIN}end/", {"user": "7"}).status_code == 403


def test_the_admin_says_that_no_hub_answers(admin_client: Client, settings: Settings, tmp_path: Any) -> None:
    settings.HUB_SOCKET = str(tmp_path / "hub.sock")

    page = admin_client.get(ADMIN)
    ended = admin_client.post(f"{ADMIN}end/", {"user": "7"}, follow=True)

    assert "no hub process answers" in page.context["problem"]
    (message,) = ended.context["messages"]
    assert str(message).startswith("Nothing was ended: no hub process answers")


def test_a_users_account_leads_to_their_sessions(admin_client: Client) -> None:
    ana = User.objects.create_user("ana")
    (link,) = re.findall(r'href="(/admin/auth/user/[^"]*live[^"]*)"', change_page(admin_client, ana))

    assert admin_client.get(link).headers["location"] == f"{ADMIN}?user=ana"


def change_page(client: Client, user: User) -> str:
    return client.get(f"/admin/auth/user/{user.pk}/change/").content.decode()


def test_the_link_is_for_those_who_may_see_sessions(client: Client) -> None:
    client.force_login(staff("reader", "view_user"))

    page = change_page(client, User.objects.create_user("ana"))

    assert "live_sessions" not in page
    assert "live-sessions" not in page
