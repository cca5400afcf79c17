"""Entries are added, and stay as they were written."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.test import modify_settings

from notifications.audit import selectors
from notifications.audit.models import AppendOnly, AuditEntry
from notifications.audit.origin import Origin, acting
from notifications.audit.services import record
from notifications.delivery.identity import Identity, TokenUser

pytestmark = pytest.mark.django_db


def test_an_entry_says_who_did_what(ana: User) -> None:
    before = datetime.now(UTC)

    record(action="session.ended", subject="session 7 of bob", actor=ana, details={"reason": "lost laptop"})

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.subject, entry.details) == (
        "session.ended",
        "session 7 of bob",
        {"reason": "lost laptop"},
    )
    assert (entry.actor, entry.actor_name, entry.address) == (ana, "ana", None)
    assert before <= entry.time <= datetime.now(UTC)


def test_without_a_request_the_account_of_the_operating_system_did_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")

    record(action="session.ended", subject="")

    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.actor_name) == (None, f"system user {pwd.getpwuid(os.getuid()).pw_name}")


def test_within_an_origin_it_is_who_that_says(ana: User) -> None:
    with acting(Origin(user=lambda: ana, address="192.0.2.7")):
        record(action="a.b", subject="by the user")
        with acting(Origin(name="API key hub_abc_…")):
            record(action="a.b", subject="by the key")

    by_key, by_user = AuditEntry.objects.all()
    assert (by_user.actor, by_user.actor_name, by_user.address) == (ana, "ana", "192.0.2.7")
    assert (by_key.actor, by_key.actor_name, by_key.address) == (None, "API key hub_abc_…", None)


def test_the_actor_that_is_given_is_believed_before_the_request(ana: User, django_user_model: type[User]) -> None:
    bob = django_user_model.objects.create_user("bob")

    with acting(Origin(user=lambda: bob, address="192.0.2.7")):
        record(action="a.b", subject="", actor=ana)

    entry = AuditEntry.objects.get()
    assert (entry.actor_name, entry.address) == ("ana", "192.0.2.7")


def test_the_bearer_of_a_token_is_noted_by_name() -> None:
    record(action="a.b", subject="", actor=TokenUser(Identity(user="u-1", info={"name": "Carla"}, from_token=True)))

    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.actor_name) == (None, "Carla")


def test_what_is_rolled_back_is_not_noted(ana: User) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        record(action="a.b", subject="")
        User.objects.create_user("ana")

    assert not AuditEntry.objects.exists()


def test_a_site_without_the_app_notes_nothing() -> None:
    with modify_settings(INSTALLED_APPS={"remove": ["notifications.audit"]}):
        record(action="a.b", subject="")

    assert not AuditEntry.objects.exists()


def test_an_action_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 64 characters"):
        record(action="x" * 65, subject="")


def test_text_that_no_database_can_hold_is_noted_without_it() -> None:
    record(action="a.b", subject="a\0b\udc80")

    assert AuditEntry.objects.get().subject == "ab?"


def _save(entry: AuditEntry) -> None:
    entry.subject = "nothing"
    entry.save()


def _save_a_copy(entry: AuditEntry) -> None:
    AuditEntry(pk=entry.pk, action="a.b", subject="nothing").save()


CHANGES: list[Callable[[AuditEntry], object]] = [
    _save,
    _save_a_copy,
    lambda entry: entry.delete(),
    lambda entry: AuditEntry.objects.update(subject="nothing"),
    lambda entry: AuditEntry.objects.filter(pk=entry.pk).update(subject="nothing"),
    lambda entry: AuditEntry.objects.all().delete(),
    lambda entry: AuditEntry.objects.filter(pk=entry.pk).delete(),
    lambda entry: AuditEntry.objects.bulk_update([AuditEntry(pk=entry.pk, subject="nothing")], ["subject"]),
    lambda entry: AuditEntry.objects.update_or_create({"subject": "nothing"}, pk=entry.pk),
    lambda entry: AuditEntry.objects.bulk_create(
        [AuditEntry(pk=entry.pk, subject="nothing")],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["subject"],
    ),
]


@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_is_neither_changed_nor_deleted(change: Callable[[AuditEntry], object]) -> None:
    record(action="a.b", subject="as it was")

    with pytest.raises((AppendOnly, IntegrityError)), transaction.atomic():
        change(AuditEntry.objects.get())

    assert AuditEntry.objects.get().subject == "as it was"


def test_an_account_can_be_deleted_and_its_name_stays(ana: User) -> None:
    record(action="a.b", subject="", actor=ana)

    ana.delete()

    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.actor_name) == (None, "ana")


def test_entries_are_read_by_action_by_actor_and_by_time(ana: User) -> None:
    record(action="alert.acknowledged", subject="first", actor=ana)
    record(action="api_key.revoked", subject="second")
    record(action="api_key.revoked", subject="third", actor=ana)
    first, second, third = AuditEntry.objects.order_by("pk")

    def subjects(**wanted: object) -> list[str]:
        return [entry.subject for entry in selectors.newest(**wanted)]  # type: ignore[arg-type]

    assert subjects() == ["third", "second", "first"]
    assert subjects(limit=2) == ["third", "second"]
    assert subjects(action="api_key.revoked") == ["third", "second"]
    assert subjects(actor=ana) == ["third", "first"]
    assert subjects(since=second.time, until=third.time) == ["second"]
    assert subjects(until=first.time - timedelta(seconds=1)) == []
