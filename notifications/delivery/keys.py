"""Which topics an API key covers, for every entrance that takes one.

The keys of the setting `HUB_API_KEYS` are known here; an app that stores keys registers a verifier of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from django.utils.crypto import constant_time_compare

from notifications.events import conf

#: Takes a key and returns the patterns of topics it covers, or None when it is not one. May query the database.
Verifier = Callable[[str], tuple[str, ...] | None]

EVERY_TOPIC = ("*",)

_verifiers: list[Verifier] = []


def register(verifier: Verifier) -> None:
    """Ask `verifier` about keys that the settings do not know; registering it again changes nothing."""
    if verifier not in _verifiers:
        _verifiers.append(verifier)


def unregister(verifier: Verifier) -> None:
    """Take `register()` back; a test's counterpart of it."""
    _verifiers[:] = [known for known in _verifiers if known != verifier]


def patterns_of(key: str) -> tuple[str, ...] | None:
    """The patterns of topics (with * and ?) that a key covers, or None when there is no such key.

    Synchronous; may query the database, and raises its errors.
    """
    if not key:
        return None
    if any(constant_time_compare(key, known) for known in conf.get("HUB_API_KEYS")):
        return EVERY_TOPIC
    for verifier in _verifiers:
        if (patterns := verifier(key)) is not None:
            return patterns
    return None
