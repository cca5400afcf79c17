"""Keys: what is stored of them, their patterns, and `manage.py apikey`."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from notifications.api.models import ApiKey
from notifications.api.patterns import parse_patterns
from notifications.api.selectors import hash_of, key_by_prefix, valid_key
from notifications.api.services import create_api_key, revoke_api_key
from notifications.delivery import keys

pytestmark = pytest.mark.django_db


def test_only_the_hash_of_a_key_is_stored() -> None:
    key, text = create_api_key(name=" Shop ", patterns=["orders:*"])

    stored = ApiKey.objects.values().get()
    assert stored["name"] == "Shop"
    assert stored["hash"] == hash_of(text)
    assert text == f"hub_{key.prefix}_{text[-40:]}"
    assert text.isascii()
    assert text[4:].replace("_", "").isalnum()
    assert not any(text[-40:] in str(value) for value in stored.values())


def test_keys_differ() -> None:
    texts = {create_api_key(name="Shop", patterns=["*"])[1] for _ in range(20)}

    assert len(texts) == 20


def test_a_revoked_key_is_not_valid() -> None:
    key, text = create_api_key(name="Shop", patterns=["orders:*"])
    assert valid_key(hash=hash_of(text)) == key
    assert keys.patterns_of(text) == ("orders:*",)

    revoke_api_key(key=key)

    assert valid_key(hash=hash_of(text)) is None
    assert keys.patterns_of(text) is None


def test_a_second_revocation_keeps_the_time_of_the_first() -> None:
    key, _ = create_api_key(name="Shop", patterns=["*"])
    revoke_api_key(key=key)
    first = key.revoked_at

    revoke_api_key(key=key)

    assert ApiKey.objects.get().revoked_at == first


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("*", ("*",)),
        ("orders:*\n\n  users:? \norders:*", ("orders:*", "users:?")),
        ('["orders:*", "#7"]', ("orders:*", "#7")),
    ],
)
def test_patterns_are_lines_or_a_list(text: str, patterns: tuple[str, ...]) -> None:
    assert parse_patterns(text) == patterns


@pytest.mark.parametrize("text", ["", " \n ", "[]", "[1]", '["a"', "orders:[ab]", "a\tb", "{}]"])
def test_what_is_not_a_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_patterns(text)


@pytest.mark.parametrize(("name", "patterns"), [("", ["*"]), ("x" * 121, ["*"]), ("Shop", []), ("Shop", ["a[b"])])
def test_no_key_is_made_of_bad_values(name: str, patterns: list[str]) -> None:
    with pytest.raises(ValidationError):
        create_api_key(name=name, patterns=patterns)

    assert ApiKey.objects.count() == 0


def command(*arguments: str) -> tuple[str, str]:
    output, errors = StringIO(), StringIO()
    call_command("apikey", *arguments, stdout=output, stderr=errors)
    return output.getvalue(), errors.getvalue()


def test_the_command_prints_a_new_key_alone() -> None:
    output, errors = command("create", "Shop", "--topics", "orders:*", "users:?")

    key = valid_key(hash=hash_of(output.strip()))
    assert key is not None
    assert (key.name, key.patterns) == ("Shop", "orders:*\nusers:?")
    assert "orders:*, users:?" in errors
    assert output.strip() not in errors


def test_the_command_lists_and_revokes() -> None:
    text = command("create", "Shop", "--topics", "orders:*")[0].strip()
    command("create", "Robot")
    key = key_by_prefix(text)
    assert key is not None

    revoked, _ = command("revoke", f"hub_{key.prefix}_…")

    assert revoked == f"Shop (hub_{key.prefix}_…) is revoked: it is refused from now on.\n"
    head, robot, shop = command("list")[0].splitlines()
    assert head.split() == ["KEY", "NAME", "TOPICS", "CREATED", "LAST", "USED", "STATE"]
    assert robot.split()[1:3] + robot.split()[-2:] == ["Robot", "*", "never", "valid"]
    assert shop.split()[:3] == [f"hub_{key.prefix}_…", "Shop", "orders:*"]
    assert shop.split()[-3] == "revoked"
    assert head.index("NAME") == robot.index("Robot") == shop.index("Shop")


def test_the_command_refuses_what_it_does_not_know() -> None:
    with pytest.raises(CommandError, match="no key begins with 'hub_nothing'"):
        command("revoke", "hub_nothing")
    with pytest.raises(CommandError, match="is not a pattern of topics"):
        command("create", "Shop", "--topics", "a[b]")
    with pytest.raises(CommandError, match="required"):
        command()
