"""The pages of chat: rooms are free to name."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from notifications.chat import selectors
from notifications.events import publish
from notifications.events.topics import sender_of

pytestmark = pytest.mark.django_db(transaction=True)

ODD_ROOMS = [
    "lobby",
    "two words",
    "Küche & Bad",
    "会議室",
    "ops/night/shift",
    "a:b",
    "what?",
    "50%",
    "#general",
    "{room}",
    "'\"<b>",
    "x" * 250,
]


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def ana(django_user_model: type[User], client: Client) -> User:
    user = django_user_model.objects.create_user("ana", first_name="Ana", last_name="Lima")
    client.force_login(user)
    return user


@pytest.mark.parametrize("path", ["/chat/", "/chat/lobby/", "/chat/two%20words/"])
def test_visitors_are_sent_to_log_in(client: Client, path: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.headers["Location"]) == (302, f"/accounts/login/?next={quote(path)}")


@pytest.mark.parametrize("room", ODD_ROOMS)
def test_a_room_of_any_name_opens_with_its_history(client: Client, ana: User, room: str) -> None:
    published = publish(f"chat:{room}", "chat.message", {"message": "hi <b>"}, sender=sender_of(ana))

    # As the form's script makes the address, and as Django does.
    for address in (f"/chat/{quote(room, safe='')}/", reverse("chat-room", args=[room])):
        answer = client.get(address)
        assert answer.status_code == 200
        assert answer.context["room"] == room
        [message] = answer.context["state"]["messages"]
        assert (message["data"], message["sender"]["info"]) == ({"message": "hi <b>"}, {"name": "Ana Lima"})
        assert answer.context["state"]["cursor"] == {"offset": 1, "epoch": published.epoch}
        assert "hi &lt;b&gt;" in answer.content.decode()
    assert client.get("/chat/").context["rooms"] == [room]


@pytest.mark.parametrize("room", ["x" * 251, "zero\u200bwidth", "bell\x07", "new\nline"])
def test_names_that_no_topic_can_have_are_not_found(client: Client, ana: User, room: str) -> None:
    assert client.get(f"/chat/{quote(room, safe='')}/").status_code == 404
    assert client.get("/chat/", {"room": f"x{room}"}).status_code == 404


def test_a_room_without_history_opens_empty(client: Client, ana: User) -> None:
    answer = client.get("/chat/new/")

    assert answer.context["state"]["messages"] == []
    assert answer.context["state"]["cursor"]["offset"] == 0
    assert client.get("/chat/").context["rooms"] == []


def test_a_room_opens_with_its_newest_hundred_in_order(client: Client, ana: User) -> None:
    for number in range(103):
        publish("chat:busy", "chat.message", {"message": str(number)})

    messages = client.get("/chat/busy/").context["state"]["messages"]

    assert [message["data"]["message"] for message in messages] == [str(number) for number in range(3, 103)]


def test_what_is_no_message_is_not_shown_as_one(client: Client, ana: User) -> None:
    publish("chat:lobby", "note", None)
    publish("chat:lobby", "note", {"message": "reads like one"})
    publish("chat:lobby", "note", {"message": 3})

    state = client.get("/chat/lobby/").context["state"]

    assert [message["data"] for message in state["messages"]] == [{"message": "reads like one"}]
    assert state["cursor"]["offset"] == 3


def test_the_rooms_are_listed_by_their_newest_message(client: Client, ana: User) -> None:
    for room in ("first", "second", "first", "third/part"):
        publish(f"chat:{room}", "chat.message", {"message": "hi"})
    publish("alerts:all", "message", {})

    page = client.get("/chat/")

    assert page.context["rooms"] == ["third/part", "first", "second"]
    assert 'href="/chat/third/part/"' in page.content.decode()
    assert selectors.rooms_with_history(limit=1) == ["third/part"]


def test_the_form_leads_to_a_room_without_a_script(client: Client, ana: User) -> None:
    answer = client.get("/chat/", {"room": " two words "})

    assert (answer.status_code, answer.headers["Location"]) == (302, "/chat/two%20words/")


def test_public_rooms_are_open_to_visitors_and_show_them_no_other_rooms(client: Client, settings: Settings) -> None:
    settings.HUB_PUBLIC_CHAT_ROOMS = ["help"]
    publish("chat:secret", "chat.message", {"message": "hi"})

    answer = client.get("/chat/help/")

    assert answer.status_code == 200
    assert answer.context["rooms"] == []
    assert client.get("/chat/secret/").status_code == 302
