"""Topics of the setting `HUB_TOPICS`: what their options mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from pytest_django import Settings

from notifications.events import publish
from notifications.events.checks import check_topics
from notifications.events.configured import declaration_of
from notifications.events.exceptions import InvalidEvent, UnknownTopic
from notifications.events.topics import TopicRegistry, registry

ACTIONS = ("subscribe", "publish", "read_history", "see_presence")
FOR_EVERYBODY = {
    f"allow_{action}_for_{whom}": True
    for action in ("subscribe", "publish", "history", "presence")
    for whom in ("client", "anonymous")
}


class SignedIn:
    is_authenticated = True

    def __init__(self, pk: Any) -> None:
        self.pk = pk


def registry_of(namespace: str, options: dict[str, Any]) -> TopicRegistry:
    registry = TopicRegistry()
    registry.register(declaration_of(namespace, options))
    return registry


def allowed(registry: TopicRegistry, name: str, user: Any) -> list[str]:
    return [action for action in ACTIONS if registry.resolve(name).allows(action, user)]


@pytest.mark.parametrize(
    ("option", "attribute", "value"),
    [
        ({}, "recovery", "stream"),
        ({"force_recovery_mode": "cache"}, "recovery", "cache"),
        ({"recovery_mode": "cache"}, "recovery", "cache"),
        ({"force_recovery_mode": ""}, "recovery", "stream"),
        ({}, "deltas", False),
        ({"allowed_delta_types": ["fossil"]}, "deltas", True),
        ({"allowed_delta_types": []}, "deltas", False),
        ({}, "filterable", False),
        ({"allow_tags_filter": True}, "filterable", True),
    ],
)
def test_an_option_says_how_a_topic_is_delivered(option: dict[str, Any], attribute: str, value: Any) -> None:
    assert getattr(declaration_of("test", option), attribute) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recovery_mode": "map"}, "'recovery_mode'] must be one of '', 'stream', 'cache', not 'map'"),
        ({"force_recovery_mode": True}, "must be one of"),
        ({"allowed_delta_types": ["vcdiff"]}, "must be ['fossil'] or [], not ['vcdiff']"),
        ({"allowed_delta_types": "fossil"}, "must be ['fossil']"),
        ({"allow_tags_filter": 1}, "must be true or false"),
        ({"allow_user_limited_channels": "yes"}, "must be true or false"),
        ({"channel_regex": "["}, "is no regular expression: '['"),
        ({"channel_regex": 7}, "is no regular expression: 7"),
        ({"history_meta_ttl": "long"}, "['history_meta_ttl']: 'long' is not a duration"),
        ({"publication_data_format": "binary"}, "must be one of '', 'json', 'json_object', not 'binary'"),
        ({"subscribe_proxy_enabled": True}, "no option 'subscribe_proxy_enabled'"),
        ({"shared_poll": {}}, "no option 'shared_poll'"),
    ],
)
def test_an_option_that_cannot_be_stops_the_start(settings: Settings, options: Any, message: str) -> None:
    settings.HUB_TOPICS = {"test": options}

    (found,) = check_topics()

    assert (found.id, message in found.msg) == ("hub.E001", True), found.msg


def test_options_without_an_effect_of_their_own_are_taken() -> None:
    options = dict.fromkeys(("force_positioning", "allow_positioning", "force_recovery", "allow_recovery"), True)

    assert declaration_of("test", {**options, "history_meta_ttl": "720h"}).recovery == "stream"


@pytest.mark.parametrize(("namespace", "name"), [("ns", "$ns:rest"), ("", "$secret"), ("", "$$secret")])
def test_a_private_topic_is_for_holders_of_a_token_alone(namespace: str, name: str) -> None:
    registry = registry_of(namespace, FOR_EVERYBODY)

    assert allowed(registry, name, SignedIn(1)) == []
    assert allowed(registry, name, AnonymousUser()) == []
    assert allowed(registry, name.replace("$", ""), AnonymousUser()) == list(ACTIONS)


@pytest.mark.parametrize(("namespace", "name"), [("ns", "$other:rest"), ("ns", "$$ns:rest"), ("ns", "$ns:"), ("", "$")])
def test_a_dollar_makes_no_other_name_known(namespace: str, name: str) -> None:
    with pytest.raises(UnknownTopic):
        registry_of(namespace, FOR_EVERYBODY).resolve(name)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("ns:dialog#1,2", ["1", "2"]),
        ("ns:a#1#2", ["2"]),
        ("ns:#u-7", ["u-7"]),
        ("ns:dialog#12", []),
        ("ns:dialog#1 ", []),
        ("ns:dialog#", []),
    ],
)
def test_a_user_limited_topic_is_for_those_its_name_lists(name: str, listed: list[str]) -> None:
    registry = registry_of("ns", {"allow_user_limited_channels": True})
    users = [SignedIn(1), SignedIn("2"), SignedIn("u-7")]

    admitted = [str(user.pk) for user in users if allowed(registry, name, user) == ["subscribe"]]

    assert admitted == listed
    assert allowed(registry, name, AnonymousUser()) == []


def test_options_for_everybody_do_not_open_a_user_limited_topic() -> None:
    registry = registry_of("ns", {**FOR_EVERYBODY, "allow_user_limited_channels": True})

    assert allowed(registry, "ns:dialog#1", SignedIn(1)) == list(ACTIONS)
    assert allowed(registry, "ns:dialog#1", SignedIn(2)) == []
    assert allowed(registry, "ns:dialog#1", AnonymousUser()) == []
    assert allowed(registry, "ns:dialog", SignedIn(2)) == list(ACTIONS)
    assert allowed(registry, "$ns:dialog#1", SignedIn(1)) == []


def test_without_the_option_a_name_lists_nobody() -> None:
    registry = registry_of("ns", {"allow_subscribe_for_client": True})

    assert allowed(registry, "ns:dialog#1", SignedIn(2)) == ["subscribe"]


@pytest.mark.parametrize(
    ("name", "known"), [("ns:1234", True), ("$ns:12", True), ("ns:", False), ("ns:12a", False), ("$ns:a", False)]
)
def test_a_name_matches_the_regex_of_its_namespace(name: str, known: bool) -> None:
    registry = registry_of("ns", {"channel_regex": "^[0-9]+$"})

    if known:
        assert registry.resolve(name).name == name
    else:
        with pytest.raises(UnknownTopic):
            registry.resolve(name)


def test_a_regex_without_anchors_is_found_anywhere_behind_the_namespace() -> None:
    registry = registry_of("ns", {"channel_regex": "s"})

    assert registry.resolve("ns:as it is").name == "ns:as it is"
    with pytest.raises(UnknownTopic):
        registry.resolve("ns:no")


@pytest.fixture
def object_topic() -> Iterator[None]:
    """Topics `objects:<rest>` whose data must be an object."""
    declaration = registry.register(declaration_of("objects", {"publication_data_format": "json_object"}))
    yield
    registry.unregister(declaration)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("data", [None, 1, "text", [{}]])
def test_data_that_must_be_an_object_is_one(settings: Settings, object_topic: None, data: Any) -> None:
    settings.HUB_SOCKET = ""

    assert publish("objects:1", "any", {"a": 1}).offset == 0
    with pytest.raises(InvalidEvent, match="Expected `object`"):
        publish("objects:1", "any", data)
