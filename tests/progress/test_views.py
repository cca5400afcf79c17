"""The page of tasks: who sees it, what it starts, and its downloads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
from django.utils import timezone
from pytest_django import Settings

from notifications.progress import exports
from notifications.progress.models import TaskRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _own_files(settings: Settings, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = str(tmp_path)


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_user("ana", is_staff=True))
    return client


def test_visitors_are_sent_to_log_in_and_others_refused(client: Client) -> None:
    assert client.get("/tasks/").headers["Location"] == "/accounts/login/?next=/tasks/"

    client.force_login(User.objects.create_user("bob"))

    assert client.get("/tasks/").status_code == 403
    assert client.post("/tasks/prune/").status_code == 403
    assert client.post("/tasks/export/", {"topic": "chat:lobby"}).status_code == 403
    assert client.get("/tasks/exports/x.jsonl").status_code == 403
    assert not TaskRun.objects.exists()


def test_the_page_has_its_state(staff: Client) -> None:
    started = staff.post("/tasks/prune/").json()

    page = staff.get("/tasks/").content.decode()

    found = re.search(r"<hub-tasks.*?<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert found is not None
    state = json.loads(found[1])
    assert state["tasks"] == [started]
    assert state["cursor"] == {"offset": 0, "epoch": state["cursor"]["epoch"]}
    assert "hub.prune_events" in page


def test_starting_answers_with_the_task(staff: Client) -> None:
    answer = staff.post("/tasks/export/", {"topic": "chat:lobby"})

    assert answer.status_code == 202
    task = answer.json()
    assert (task["name"], task["state"], task["done"], task["total"], task["error"]) == (
        "hub.export_history",
        "queued",
        0,
        None,
        "",
    )
    assert TaskRun.objects.get().pk == task["id"]


@pytest.mark.parametrize(
    ("topic", "detail"),
    [
        ("", "Name a topic."),
        ("nobody:declared", "There is no topic called “nobody:declared”."),
        ("fleeting:1", "“fleeting:1” keeps no events, so there is nothing to export."),
    ],
)
def test_a_topic_that_cannot_be_exported_is_explained(staff: Client, topic: str, detail: str) -> None:
    answer = staff.post("/tasks/export/", {"topic": topic})

    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"] == detail
    assert not TaskRun.objects.exists()


def test_without_a_worker_the_page_is_told(staff: Client, settings: Settings) -> None:
    settings.HUB_SOCKET = "/nowhere/hub.sock"

    answer = staff.post("/tasks/prune/")

    assert answer.status_code == 503
    assert "manage.py runhub" in answer.json()["detail"]


def test_starting_needs_the_csrf_token_and_post(staff: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get())

    assert strict.post("/tasks/prune/").status_code == 403
    assert staff.get("/tasks/prune/").status_code == 405


def exported(name: str, content: bytes, *, by: User) -> None:
    """A file that a task exported for a user."""
    exports.folder().mkdir(exist_ok=True)
    (exports.folder() / name).write_bytes(content)
    now = timezone.now()
    address = exports.address_of(exports.folder() / name)
    TaskRun.objects.create(
        id=name, name="hub.export_history", result_url=address, started_by=by, started_at=now, updated_at=now
    )


def test_who_may_not_read_a_topic_cannot_export_it(staff: Client) -> None:
    other = User.objects.create_user("bob")

    answer = staff.post("/tasks/export/", {"topic": f"#{other.pk}"})

    assert answer.status_code == 403
    assert not TaskRun.objects.exists()


def test_a_file_is_for_who_asked_for_it(staff: Client, client: Client) -> None:
    exported("mine.jsonl", b"{}", by=User.objects.get(username="ana"))
    client.force_login(User.objects.create_user("bob", is_staff=True))

    assert client.get("/tasks/exports/mine.jsonl").status_code == 403


def test_a_file_is_downloaded_as_an_attachment(staff: Client) -> None:
    exported("chat-lobby.jsonl", b'{"a":1}\n', by=User.objects.get(username="ana"))

    answer = staff.get("/tasks/exports/chat-lobby.jsonl")

    assert b"".join(answer.streaming_content) == b'{"a":1}\n'  # type: ignore[attr-defined]
    assert answer.headers["Content-Disposition"] == 'attachment; filename="chat-lobby.jsonl"'
    assert answer.headers["Content-Length"] == "8"
    assert staff.get("/tasks/exports/missing.jsonl").status_code == 404
    assert staff.get("/tasks/exports/..%2Fchat-lobby.jsonl").status_code == 404


async def test_a_large_file_is_streamed_in_pieces_on_an_event_loop(async_client: AsyncClient) -> None:
    user = await User.objects.acreate(username="ana", is_staff=True)
    await async_client.aforce_login(user)
    content = b"0123456789abcdef" * 20_000
    await sync_to_async(exported)("large.jsonl", content, by=user)

    answer = await async_client.get("/tasks/exports/large.jsonl")
    pieces = [piece async for piece in answer.streaming_content]  # type: ignore[attr-defined]

    assert b"".join(pieces) == content
    assert len(pieces) == 5
