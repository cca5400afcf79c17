"""Exported files: what is in them, and which may be read."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pytest_django import Settings

from notifications.events import Event, publish
from notifications.events.exceptions import UnknownTopic
from notifications.progress import exports

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _own_files(settings: Settings, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = str(tmp_path)


def lines(path: Path) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("topic", ["chat:lobby", "open:1"])
def test_a_file_has_every_kept_event_in_order(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PAGE_EVENTS", 3)
    type, name = ("chat.message", "chat:lobby") if topic.startswith("chat") else ("message", "open:1")
    events = [publish(name, type, {"message": f"number {number}"}) for number in range(7)]
    told: list[tuple[int, int]] = []

    path = exports.write_history(topic, tell=lambda done, total: told.append((done, total)))

    assert [(event.offset, event.id, event.data) for event in lines(path)] == [
        (event.offset, event.id, event.data) for event in events
    ]
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_what_is_published_meanwhile_does_not_make_it_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PAGE_EVENTS", 2)
    for number in range(4):
        publish("open:1", "message", number)

    def tell(done: int, total: int) -> None:
        publish("open:1", "message", "meanwhile")

    path = exports.write_history("open:1", tell=tell)

    assert [event.data for event in lines(path)] == [0, 1, 2, 3]


def test_an_empty_topic_is_an_empty_file() -> None:
    path = exports.write_history("chat:nobody", tell=lambda done, total: None)

    assert path.read_bytes() == b""
    assert path.name.startswith("chat-nobody-")


def test_a_failed_export_leaves_no_file() -> None:
    publish("open:1", "message", 1)

    def tell(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        exports.write_history("open:1", tell=tell)
    with pytest.raises(UnknownTopic):
        exports.write_history("nobody:declared", tell=tell)

    assert list(exports.folder().iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../secret_key", "..", "", ".hidden.jsonl", "secret_key", "a/b.jsonl", "/etc/passwd", "missing.jsonl"]
)
def test_only_exported_files_are_found(name: str, tmp_path: Path) -> None:
    exports.folder().mkdir()
    (tmp_path / "secret_key").write_text("secret")
    (exports.folder() / "secret_key").write_text("secret")
    (exports.folder() / ".hidden.jsonl").write_text("secret")

    assert exports.path_of(name) is None


def test_old_files_are_deleted() -> None:
    exports.folder().mkdir()
    ages: dict[str, Any] = {"old.jsonl": 8 * 86_400, ".left.jsonl.part": 8 * 86_400, "new.jsonl": 6 * 86_400}
    for name, age in ages.items():
        path = exports.folder() / name
        path.write_text("")
        os.utime(path, (time.time() - age, time.time() - age))

    assert exports.delete_old_files() == 2

    assert [path.name for path in exports.folder().iterdir()] == ["new.jsonl"]
