"""What a process knows of changed users, so that who is signed in need not be looked up at every connect.

A storm of reconnects would otherwise ask the database several times per socket. What was signed, a token or a
cookie, is believed as long as nothing was told about its user since; everything else is looked up. So whoever was
shut out is never let in again by what they were given before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from notifications.delivery.identity import Identity
from notifications.delivery.models import Revocation
from notifications.events.threads import in_database_thread

logger = logging.getLogger(__name__)

# How long a signed cookie lives, and so how far back changes have to be known.
CREDENTIAL_SECONDS = 43_200
# What was signed so soon after a change is not believed: clocks differ, and a change is dated before its commit.
MARGIN_SECONDS = 60.0
# With more inactive users than this, bearers of tokens are looked up each time.
MOST_INACTIVE = 100_000

_USER = "user:"

Spawn = Callable[[Coroutine[Any, Any, None]], Any]


def user_subject(user: str) -> str:
    """The subject of what changes a user."""
    return _USER + user


def login_subject(login: str) -> str:
    """The subject of what ends one Django session."""
    return f"login:{login}"


EVERYBODY = ""


class Revocations:
    """The changes of the last half day and the users that are not active, as one process knows them.

    Used on its event loop only. Until it was read, and while it may have missed a change, nobody is believed.
    """

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._complete_since = float("inf")
        self._changed_at: dict[str, float] = {}
        self._inactive: set[str] | None = set()
        self._reading = False
        # How often it was distrusted: a reading that began before does not make up for it.
        self._doubts = 0

    def unchanged(self, identity: Identity) -> bool:
        """Whether what is known of the identity still holds, so that the database need not be asked."""
        if not identity.user:
            return True
        if not self.trusted:
            if not self._reading:
                self._reading = True  # here, as the task begins only in the next turn of the loop
                self._spawn(self.refresh())
            return False
        if identity.from_token:
            if self._inactive is None or identity.user in self._inactive:
                return False
        elif identity.verified_at < self._complete_since:
            return False
        for subject in _subjects(identity):
            changed_at = self._changed_at.get(subject)
            if changed_at is not None and identity.verified_at <= changed_at + MARGIN_SECONDS:
                return False
        return True

    def ended(self, login: str) -> bool:
        """Whether a Django session was ended by a logout, even where the database still has it for a moment."""
        return login_subject(login) in self._changed_at

    def note(self, subject: str) -> None:
        """Something about a user, a login or everybody changed just now."""
        self._changed_at[subject] = time.time()

    def distrust(self) -> None:
        """A change may have been missed: believe nobody until all is read again."""
        self._complete_since = float("inf")
        self._doubts += 1

    @property
    def trusted(self) -> bool:
        """Whether all changes are known, unless one is on its way."""
        return self._complete_since != float("inf")

    @property
    def in_use(self) -> bool:
        """Whether anybody was believed since the process began."""
        return bool(self._changed_at) or self.trusted

    async def refresh(self) -> None:
        """Read from the database what has changed, and everything when something may have been missed."""
        self._reading = True
        everything = not self.trusted
        doubts = self._doubts
        try:
            since, changed_at, inactive = await in_database_thread(_read, everything=everything)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("the users that changed cannot be read: %s", error)
            return
        finally:
            self._reading = False
        if everything:
            self._inactive = inactive if len(inactive) <= MOST_INACTIVE else None
        elif self._inactive is not None:
            changed = {subject.removeprefix(_USER) for subject in changed_at if subject.startswith(_USER)}
            self._inactive = (self._inactive - changed) | inactive
        # What was noted here stays, and with its own time: the database dates a change within its transaction, which
        # may commit much later, and says nothing of what a judgement found out.
        for subject, at in self._changed_at.items():
            if at >= since and at > changed_at.get(subject, 0.0):
                changed_at[subject] = at
        self._changed_at = changed_at
        if doubts == self._doubts:
            self._complete_since = since


def _subjects(identity: Identity) -> tuple[str, ...]:
    if identity.login:
        return user_subject(identity.user), login_subject(identity.login), EVERYBODY
    return user_subject(identity.user), EVERYBODY


def _read(*, everything: bool) -> tuple[float, dict[str, float], set[str]]:
    """Since when the changes are known, the changes, and who is inactive of those changed or of all."""
    since = timezone.now() - timedelta(seconds=CREDENTIAL_SECONDS)
    Revocation.objects.filter(revoked_at__lt=since - timedelta(seconds=CREDENTIAL_SECONDS)).delete()
    changed_at: dict[str, float] = {}
    for subject, at in Revocation.objects.filter(revoked_at__gte=since).values_list("subject", "revoked_at"):
        changed_at[subject] = max(at.timestamp(), changed_at.get(subject, 0.0))
    users = get_user_model()
    if not any(field.name == "is_active" for field in users._meta.concrete_fields):
        return since.timestamp(), changed_at, set()
    inactive = users._default_manager.filter(is_active=False)
    if not everything:
        changed = [subject.removeprefix(_USER) for subject in changed_at if subject.startswith(_USER)]
        inactive = inactive.filter(pk__in=changed)
    return since.timestamp(), changed_at, set(map(str, inactive.values_list("pk", flat=True)[: MOST_INACTIVE + 1]))
