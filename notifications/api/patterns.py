"""Patterns of topics: what an API key may reach."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from django.core.exceptions import ValidationError


def parse_patterns(text: str) -> tuple[str, ...]:
    """The patterns in a text: one per line, or a JSON list of them.

    Raises ValidationError when there is none, or one is not a pattern.
    """
    text = text.strip()
    if not text.startswith("["):  # which no pattern begins with
        return checked_patterns(text.splitlines())
    try:
        return checked_patterns(msgspec.json.decode(text, type=list[str]))
    except msgspec.MsgspecError as error:
        raise ValidationError(f"Not a JSON list of patterns: {error}") from error


def checked_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns without blanks and repetitions. Raises ValidationError as `parse_patterns()` does."""
    found = tuple(dict.fromkeys(stripped for pattern in patterns if (stripped := pattern.strip())))
    if not found:
        raise ValidationError("Name at least one pattern of topics, such as orders:* (or * for all of them).")
    for pattern in found:
        # They would be read as sets of characters, which nobody expects who knows * and ? only.
        if not pattern.isprintable() or "[" in pattern or "]" in pattern:
            raise ValidationError(
                "%(pattern)r is not a pattern of topics: it has the letters of a topic's name, with * for any "
                "number of characters and ? for one.",
                params={"pattern": pattern},
            )
    return found
