"""Making, changing and revoking API keys."""

from __future__ import annotations

import logging
import secrets
import string
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import Q
from django.utils import timezone

from notifications.api.models import ApiKey
from notifications.api.patterns import checked_patterns
from notifications.api.selectors import hash_of, login_of_hash
from notifications.audit.services import record
from notifications.delivery import control
from notifications.delivery.codes import FORCE_RECONNECT, INVALID_TOKEN, Code
from notifications.events.exceptions import HubError

logger = logging.getLogger(__name__)

PREFIX_LENGTH = 8
USE_NOTED_EVERY = timedelta(minutes=1)

# Letters and digits only, so that a double click selects the whole key.
_ALPHABET = string.ascii_letters + string.digits


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def create_api_key(*, name: str, patterns: Iterable[str], created_by: Any = None) -> tuple[ApiKey, str]:
    """Make a key that may publish to and read the topics that match one of `patterns`.

    Returns the row and the key's text, which is not stored and cannot be had again. Raises ValidationError when
    the name is empty or too long, or a pattern is not valid.
    """
    prefix = _random_text(PREFIX_LENGTH)
    text = f"hub_{prefix}_{_random_text(40)}"
    key = ApiKey(
        name=name.strip(),
        prefix=prefix,
        hash=hash_of(text),
        patterns="\n".join(checked_patterns(patterns)),
        created_by=created_by,
    )
    key.full_clean()
    with transaction.atomic():
        key.save()
        record(action="api_key.created", subject=str(key), actor=created_by, details=_rights(key))
    return key, text


def change_api_key(*, key: ApiKey, name: str, patterns: Iterable[str]) -> None:
    """Give a key another name or other topics; its open streams come back with their new rights."""
    key.name = name.strip()
    key.patterns = "\n".join(checked_patterns(patterns))
    key.full_clean()
    with transaction.atomic():
        before = _rights(ApiKey.objects.select_for_update().get(pk=key.pk))
        key.save(update_fields=["name", "patterns"])
        if _rights(key) != before:
            record(action="api_key.changed", subject=str(key), details={**_rights(key), "before": before})
        _close_streams(key, FORCE_RECONNECT)


def revoke_api_key(*, key: ApiKey) -> None:
    """Refuse the key from now on, in every process within a second, and close what was opened with it.

    A key that was revoked before keeps the time of it.
    """
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()):
            record(action="api_key.revoked", subject=str(key), details=_rights(key))
        key.refresh_from_db(fields=["revoked_at"])
        _close_streams(key, INVALID_TOKEN)


def _rights(key: ApiKey) -> dict[str, Any]:
    return {"name": key.name, "topics": key.patterns.splitlines()}


def note_use(*, key: ApiKey) -> None:
    """Remember that the key was used, once a minute at most."""
    now = timezone.now()
    unnoted = Q(last_used_at=None) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
    if key.last_used_at is not None and key.last_used_at >= now - USE_NOTED_EVERY:
        return
    try:
        ApiKey.objects.filter(unnoted, pk=key.pk).update(last_used_at=now)
    except DatabaseError as error:  # a database that cannot be written to now is no reason to refuse a key
        logger.warning("the use of the API key %s was not noted: %s", key.shown_prefix, error)


def _close_streams(key: ApiKey, code: Code) -> None:
    def ask() -> None:
        try:
            control.disconnect(login=login_of_hash(key.hash), code=code)
        except HubError as error:
            logger.warning("open streams of the API key %s were not closed: %s", key.shown_prefix, error)

    transaction.on_commit(ask, robust=True)
