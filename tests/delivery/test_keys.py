"""Which topics an API key covers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django import Settings

from notifications.delivery import keys


def stored(key: str) -> tuple[str, ...] | None:
    return {"stored": ("orders:*",), "useless": (), "given": ("chat:*",)}.get(key)


@pytest.fixture(autouse=True)
def _keys(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.HUB_API_KEYS = ["given", "schlüssel", ""]
    monkeypatch.setattr(keys, "_verifiers", [])
    keys.register(stored)
    keys.register(stored)
    yield
    keys.unregister(stored)


@pytest.mark.parametrize(
    ("key", "patterns"),
    [
        ("given", ("*",)),
        ("schlüssel", ("*",)),
        ("stored", ("orders:*",)),
        ("useless", ()),
        ("unknown", None),
        ("", None),
        ("give", None),
    ],
)
def test_the_settings_are_asked_first_and_then_what_is_registered(key: str, patterns: tuple[str, ...] | None) -> None:
    assert keys.patterns_of(key) == patterns


def test_a_verifier_is_taken_back_with_one_call() -> None:
    keys.unregister(stored)

    assert keys.patterns_of("stored") is None
    assert keys.patterns_of("given") == ("*",)
