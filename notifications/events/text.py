"""Text from outside, as logs and databases can hold it."""

from __future__ import annotations


def storable(text: str) -> str:
    """The text without what cannot be kept: PostgreSQL refuses the character NUL, and UTF-8 has no lone surrogates.

    The latter stand in the names of files that were not UTF-8, and so in the errors that quote them.
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "")
