"""What the hub's own apps note."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.test import Client

from notifications.alerts.services import acknowledge, publish_alert
from notifications.api.models import ApiKey
from notifications.api.services import change_api_key, create_api_key, revoke_api_key
from notifications.audit import selectors
from notifications.broadcasts import services as broadcasts
from notifications.broadcasts.models import Broadcast

pytestmark = pytest.mark.django_db(transaction=True)


def noted() -> list[tuple[str, str, str]]:
    """The actions in the order in which they were done, who did them, and to what."""
    return [(entry.action, entry.actor_name, entry.subject) for entry in reversed(selectors.newest())]


def details() -> list[dict[str, Any]]:
    return [entry.details for entry in reversed(selectors.newest())]


def test_the_first_acknowledgement_of_an_alert_is_noted(ana: User, django_user_model: type[User]) -> None:
    alert = publish_alert(name="DiskFull", fingerprint="f1")

    acknowledge(alert=alert, user=ana)
    acknowledge(alert=alert, user=django_user_model.objects.create_user("bob"))

    assert noted() == [("alert.acknowledged", "ana", "DiskFull (warning, firing)")]
    assert details()[0].keys() == {"id", "source", "fingerprint", "starts_at"}
    assert details()[0]["fingerprint"] == "f1"


def test_acknowledging_on_the_page_notes_the_address(client: Client, ana: User) -> None:
    alert = publish_alert(name="DiskFull")
    client.force_login(ana)

    client.post(f"/alerts/{alert.pk}/acknowledge/", REMOTE_ADDR="192.0.2.7")

    (entry,) = selectors.newest(action="alert.acknowledged")
    assert (entry.actor, entry.address) == (ana, "192.0.2.7")


def test_what_readers_of_a_broadcast_see_is_noted(ana: User) -> None:
    broadcast = broadcasts.save_broadcast(broadcast=Broadcast(text="A draft"), by=ana)
    assert noted() == []

    broadcasts.publish_broadcast(broadcast=broadcast, by=ana)
    broadcasts.save_broadcast(broadcast=broadcast, by=ana)  # nothing new
    broadcast.text = "Another text"
    broadcasts.save_broadcast(broadcast=broadcast, by=ana)
    broadcasts.retract_broadcast(broadcast=broadcast, by=ana)
    broadcasts.retract_broadcast(broadcast=broadcast, by=ana)

    assert noted() == [
        ("broadcast.published", "ana", "A draft"),
        ("broadcast.changed", "ana", "Another text"),
        ("broadcast.retracted", "ana", "Another text"),
    ]
    assert {name: details()[1][name] for name in ("id", "text", "severity", "audience")} == {
        "id": broadcast.pk,
        "text": "Another text",
        "severity": "info",
        "audience": "everyone",
    }


def test_a_broadcast_that_cannot_be_published_is_not_noted(ana: User) -> None:
    with pytest.raises(ValidationError):
        broadcasts.publish_broadcast(broadcast=Broadcast(text=""), by=ana)

    assert noted() == []


def test_the_deletion_of_a_published_broadcast_is_noted(ana: User) -> None:
    group = Group.objects.create(name="night shift")
    broadcasts.publish_broadcast(broadcast=Broadcast(text="Hello", audience="group", group=group), by=ana)

    group.delete()

    assert [action for action, _, _ in noted()] == ["broadcast.published", "broadcast.deleted"]
    assert [entry["audience"] for entry in details()] == ["night shift", "night shift"]


def test_the_admin_notes_who_published_and_who_retracted(admin_client: Client, ana: User) -> None:
    broadcasts.publish_broadcast(broadcast=Broadcast(text="Hello"), by=ana)
    chosen = {"action": "retract_chosen", "_selected_action": Broadcast.objects.get().pk}

    admin_client.post("/admin/hub_broadcasts/broadcast/", chosen, REMOTE_ADDR="192.0.2.7")

    assert noted() == [("broadcast.published", "ana", "Hello"), ("broadcast.retracted", "admin", "Hello")]
    assert selectors.newest()[0].address == "192.0.2.7"


def test_the_life_of_a_key_is_noted_without_the_key(ana: User) -> None:
    key, text = create_api_key(name="Shop", patterns=["orders:*"], created_by=ana)
    change_api_key(key=key, name="Shop", patterns=["orders:*"])  # nothing new
    change_api_key(key=key, name="Webshop", patterns=["orders:*", "shop:*"])
    revoke_api_key(key=key)
    revoke_api_key(key=key)

    entries = selectors.newest()
    assert [entry.action for entry in reversed(entries)] == ["api_key.created", "api_key.changed", "api_key.revoked"]
    assert entries[1].subject == f"Webshop ({key.shown_prefix})"
    assert entries[1].details == {
        "name": "Webshop",
        "topics": ["orders:*", "shop:*"],
        "before": {"name": "Shop", "topics": ["orders:*"]},
    }
    assert entries[-1].actor_name == "ana"
    assert not any(text.rpartition("_")[2] in f"{entry.subject}{entry.details}" for entry in entries)


def test_the_admin_notes_who_made_and_revoked_a_key(admin_client: Client) -> None:
    admin_client.post("/admin/hub_api/apikey/add/", {"name": "Shop", "patterns": "orders:*"})
    key = ApiKey.objects.get()

    form = {"name": "Shop", "patterns": "shop:*", "hub_api_apikey_revoke_one": ""}
    admin_client.post(f"/admin/hub_api/apikey/{key.pk}/change/", form)

    subject = f"Shop ({key.shown_prefix})"
    assert noted() == [
        ("api_key.created", "admin", subject),
        ("api_key.changed", "admin", subject),
        ("api_key.revoked", "admin", subject),
    ]
    assert details()[1]["before"]["topics"] == ["orders:*"]


def test_a_command_notes_the_account_of_the_operating_system() -> None:
    call_command("apikey", "create", "Shop", stdout=StringIO(), stderr=StringIO())

    (entry,) = selectors.newest()
    assert (entry.actor, entry.address) == (None, None)
    assert entry.actor_name.startswith("system user ")
