"""The audit log in the admin: to read, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from notifications.audit.models import AuditEntry
from notifications.audit.services import record

pytestmark = pytest.mark.django_db

LIST = "/admin/hub_audit/auditentry/"


@pytest.fixture
def entry() -> AuditEntry:
    record(action="api_key.revoked", subject="Shop <b>(hub_abc_…)</b>")
    return AuditEntry.objects.get()


def test_entries_are_listed_and_shown(admin_client: Client, entry: AuditEntry) -> None:
    listed = admin_client.get(LIST)
    shown = admin_client.get(f"{LIST}{entry.pk}/change/")

    assert (listed.status_code, shown.status_code) == (200, 200)
    for page in (listed, shown):
        assert "Shop &lt;b&gt;(hub_abc_…)&lt;/b&gt;" in page.content.decode()
    assert "_save" not in shown.content.decode()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("action=api_key.revoked", 1),
        ("action=alert.acknowledged", 0),
        (f"time__year={datetime.now(UTC).year}", 1),
        ("time__year=2001", 0),
        ("q=hub_abc", 1),
        ("q=hub_xyz", 0),
    ],
)
def test_entries_are_found(admin_client: Client, entry: AuditEntry, query: str, found: int) -> None:
    answer = admin_client.get(f"{LIST}?{query}")

    assert answer.status_code == 200
    assert answer.context["cl"].result_count == found


@pytest.mark.parametrize("path", ["add/", "{pk}/change/", "{pk}/delete/"])
def test_a_superuser_changes_nothing(admin_client: Client, entry: AuditEntry, path: str) -> None:
    answer = admin_client.post(LIST + path.format(pk=entry.pk), {"subject": "nothing", "post": "yes"})

    assert answer.status_code == 403
    assert AuditEntry.objects.get().subject == entry.subject


def test_a_superuser_deletes_no_list(admin_client: Client, entry: AuditEntry) -> None:
    chosen = {"action": "delete_selected", "_selected_action": entry.pk, "post": "yes"}

    answer = admin_client.post(LIST, chosen)

    assert "delete_selected" not in admin_client.get(LIST).content.decode()
    assert answer.status_code in (200, 302, 403)
    assert AuditEntry.objects.get().subject == entry.subject


def test_deleting_an_account_in_the_admin_keeps_what_it_did(admin_client: Client, ana: User) -> None:
    record(action="alert.acknowledged", subject="DiskFull", actor=ana)

    answer = admin_client.post(f"/admin/auth/user/{ana.pk}/delete/", {"post": "yes"})

    assert answer.status_code == 302
    assert not User.objects.filter(username="ana").exists()
    assert AuditEntry.objects.get().actor_name == "ana"


def test_reading_takes_a_permission(client: Client, ana: User, entry: AuditEntry) -> None:
    ana.is_staff = True
    ana.save()
    client.force_login(ana)
    assert client.get(LIST).status_code == 403

    ana.user_permissions.add(Permission.objects.get(codename="view_auditentry"))

    assert client.get(LIST).status_code == 200


def test_nobody_can_be_given_the_permission_to_change_entries() -> None:
    assert [*Permission.objects.filter(content_type__app_label="hub_audit").values_list("codename", flat=True)] == [
        "view_auditentry"
    ]
