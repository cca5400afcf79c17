from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import CheckMessage
from pytest_django import Settings

from notifications.events import Topic, durable, ephemeral, window
from notifications.events.checks import (
    check_atomic_requests,
    check_channel_layer,
    check_memory_log,
    check_numbers,
    check_origins,
    check_shadowed_topics,
    check_sqlite_transactions,
    check_topics,
)
from notifications.events.configured import declaration_of, parse_duration
from notifications.events.exceptions import UnknownTopic
from notifications.events.messages import group_of
from notifications.events.retention import Retention
from notifications.events.topics import TopicRegistry, namespace_of


def registry_of(*patterns: str) -> TopicRegistry:
    registry = TopicRegistry()
    for pattern in patterns:
        registry.register(type("Declared", (Topic,), {"pattern": pattern}))
    return registry


@pytest.mark.parametrize(
    ("pattern", "name", "parts"),
    [
        ("alerts:all", "alerts:all", {}),
        ("chat:<room>", "chat:the lobby", {"room": "the lobby"}),
        ("orders:<int:order>", "orders:42", {"order": 42}),
        ("a:<slug:b>:<int:c>", "a:x-y:7", {"b": "x-y", "c": 7}),
        ("files:<path:path>", "files:a/b:c", {"path": "a/b:c"}),
        (
            "jobs:<uuid:job>",
            "jobs:0198a000-0000-7000-8000-000000000000",
            {"job": uuid.UUID("0198a000-0000-7000-8000-000000000000")},
        ),
        ("#<user>", "#7", {"user": "7"}),
        ("wörld:<x>", "wörld:☂", {"x": "☂"}),
    ],
)
def test_a_name_is_taken_apart_by_its_pattern(pattern: str, name: str, parts: dict[str, Any]) -> None:
    assert registry_of(pattern).resolve(name).parts == parts


@pytest.mark.parametrize("name", ["", "orders:x", "orders:", "other:1", "orders:1\n", "orders:" + "1" * 300])
def test_a_name_that_nothing_declares_does_not_exist(name: str) -> None:
    with pytest.raises(UnknownTopic):
        registry_of("orders:<int:order>").resolve(name)


@pytest.mark.parametrize("pattern", ["a:<float:b>", "a:<b>:<b>", "a:<b"])
def test_a_pattern_that_is_not_one_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="a:<"):
        registry_of(pattern)


def test_everything_is_denied_by_default() -> None:
    topic = registry_of("a:<b>").resolve("a:1")

    assert not any(topic.allows(action, None) for action in ("subscribe", "publish", "read_history", "see_presence"))


def test_a_plain_group_is_found_back_as_its_topic() -> None:
    registry = TopicRegistry()
    registry.register(type("Room", (Topic,), {"pattern": "chat:<path:room>", "channels_group": "chat_{room}"}))

    found = registry.mirrored_by("chat_lobby", "chat_message")

    assert found is not None
    assert (found.name, found.mirror_group) == ("chat:lobby", "chat_lobby")
    assert registry.mirrored_by("chat_lobby", "other_type") is None
    assert registry.mirrored_by("another", "chat_message") is None
    assert registry.resolve("chat:the lobby").mirror_group is None


@pytest.mark.parametrize(
    ("name", "namespace"), [("chat:a:b", "chat"), ("news", ""), ("#7", "#"), ("$chat:a", "chat"), ("$news", "")]
)
def test_the_namespace_of_a_name(name: str, namespace: str) -> None:
    assert namespace_of(name) == namespace


def test_groups_have_names_that_layers_accept() -> None:
    assert group_of("chat:lobby") == "hub.chat.lobby"
    assert group_of("chat:the lobby") != group_of("chat:the-lobby")
    assert all(len(group_of(name)) < 100 for name in ("x" * 255, "☂" * 255))


@pytest.mark.parametrize(
    ("options", "retention"),
    [
        ({}, ephemeral()),
        ({"history_size": 10, "history_ttl": "1m30s"}, window(10, 90)),
        ({"durable": True}, durable(days=30)),
        ({"durable": True, "history_ttl": "2d", "history_size": 5}, durable(days=2, size=5)),
    ],
)
def test_the_retention_of_a_configured_namespace(options: dict[str, Any], retention: Retention) -> None:
    assert declaration_of("test", options).retention == retention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_sise": 1}, "no option 'history_sise'"),
        ({"presence": "yes"}, "must be true or false"),
        ({"history_size": 10}, "both 'history_size' and 'history_ttl'"),
        ({"history_size": 1, "history_ttl": "soon"}, "not a duration"),
        ({"history_size": -1}, "whole number"),
        ([], "must be an object"),
    ],
)
def test_a_mistake_in_hub_topics_stops_the_start(settings: Settings, options: Any, message: str) -> None:
    settings.HUB_TOPICS = {"test": options}

    found = check_topics()

    assert [error.id for error in found] == ["hub.E001"]
    assert message in found[0].msg


def test_the_empty_namespace_stands_for_names_without_one() -> None:
    registry = TopicRegistry()
    registry.register(declaration_of("", {}))

    assert registry.resolve("news").name == "news"
    with pytest.raises(UnknownTopic):
        registry.resolve("other:news")


@pytest.mark.parametrize(
    ("value", "seconds"), [("300s", 300), ("1h30m", 5400), ("250ms", 0.25), (5, 5), ("2d", 172_800)]
)
def test_durations(value: Any, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    ("name", "value", "check", "id"),
    [
        ("HUB_PING_SECONDS", "abc", check_numbers, "hub.E006"),
        ("HUB_PING_SECONDS", 0, check_numbers, "hub.E006"),
        ("HUB_MAX_DATA_BYTES", -1, check_numbers, "hub.E006"),
        ("HUB_ALLOWED_ORIGINS", ["example.com"], check_origins, "hub.E007"),
        ("HUB_TOPICS", {"chat": {}}, check_shadowed_topics, "hub.W002"),
        ("HUB_TOPICS", "no object", check_topics, "hub.E001"),
        ("HUB_SOCKET", "", check_memory_log, "hub.W004"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_cure(
    settings: Settings, name: str, value: Any, check: Callable[[], list[CheckMessage]], id: str
) -> None:
    setattr(settings, name, value)

    (message,) = check()

    assert message.id == id
    assert name in message.msg
    assert message.hint


CORE = "channels_redis.core.RedisChannelLayer"


@pytest.mark.parametrize(
    ("layers", "ids"),
    [
        ({}, ["hub.E002"]),
        ({"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}, []),
        ({"default": {"BACKEND": CORE}}, ["hub.E003", "hub.W001"]),
        ({"default": {"BACKEND": CORE, "CONFIG": {"hosts": ["redis://x"]}}}, ["hub.E003", "hub.W001"]),
        (
            {"default": {"BACKEND": CORE, "CONFIG": {"hosts": [{"address": "redis://x", "socket_timeout": None}]}}},
            ["hub.W001"],
        ),
    ],
)
def test_a_layer_that_would_lose_its_consumers_stops_the_start(
    settings: Settings, layers: dict[str, Any], ids: list[str]
) -> None:
    settings.CHANNEL_LAYERS = layers

    assert [message.id for message in check_channel_layer()] == ids


def test_atomic_requests_and_deferred_sqlite_stop_the_start(settings: Settings) -> None:
    settings.DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "ATOMIC_REQUESTS": True, "OPTIONS": {}},
        "other": {"ENGINE": "django.db.backends.postgresql"},
    }

    assert [error.id for error in check_atomic_requests()] == ["hub.E004"]
    assert [error.id for error in check_sqlite_transactions()] == ["hub.E005"]


def test_what_a_base_class_promised_says_nothing_of_other_methods() -> None:
    class Rooms(Topic):
        pattern = "rooms:<room>"
        asks_only_identity = True

    class Renamed(Rooms):
        pattern = "halls:<room>"

    class Moderated(Rooms):
        pattern = "moderated:<room>"

        def may_subscribe(self, user: Any, room: str) -> bool:
            return not user.is_banned

    assert (Renamed.asks_only_identity, Moderated.asks_only_identity) == (True, False)
