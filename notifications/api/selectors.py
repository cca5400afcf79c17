"""Reading API keys."""

from __future__ import annotations

import hashlib

from django.db.models import QuerySet

from notifications.api.models import ApiKey


def hash_of(text: str) -> str:
    """What is stored of a key's text. Keys are long and random, so a fast hash without salt is enough."""
    return hashlib.sha256(text.encode()).hexdigest()


def login_of_hash(hash: str) -> str:
    """How what was opened with a key is named on the control plane, so that a revocation can close it."""
    return f"key:{hash[:32]}"


def valid_key(*, hash: str) -> ApiKey | None:
    """The key with this hash, unless it was revoked."""
    return ApiKey.objects.filter(hash=hash, revoked_at=None).first()


def all_keys() -> QuerySet[ApiKey]:
    """Every key, the newest first, revoked ones included."""
    return ApiKey.objects.all()


def key_by_prefix(prefix: str) -> ApiKey | None:
    """The key whose text begins with `prefix`: the eight characters, or any longer part of the text."""
    _, _, rest = prefix.rpartition("hub_")
    return ApiKey.objects.filter(prefix=rest.partition("_")[0]).first()
