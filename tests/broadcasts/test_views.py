"""Dismissing, the banners of every page, and the admin that writes them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from notifications.broadcasts import services
from notifications.broadcasts.models import Broadcast, Receipt
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/hub_broadcasts/broadcast/"


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def ana(django_user_model: type[User]) -> User:
    return django_user_model.objects.create_user("ana")


def published(by: User, **fields: Any) -> Broadcast:
    return services.publish_broadcast(broadcast=Broadcast(**{"text": "Maintenance", **fields}), by=by)


def form(**changes: str) -> dict[str, str]:
    return {
        "text": "Maintenance at 12:00",
        "severity": "warning",
        "dismissible": "on",
        "audience": "everyone",
        "group": "",
        "starts_at_0": "2026-08-22",
        "starts_at_1": "10:00:00",
        "ends_at_0": "",
        "ends_at_1": "",
        **changes,
    }


def event_types() -> list[str]:
    return [event.type for event in history("broadcasts:all", limit=None)[0]]


def test_dismissing_leaves_a_receipt(client: Client, ana: User) -> None:
    broadcast = published(ana)
    client.force_login(ana)

    answers = [client.post(f"/broadcasts/{broadcast.pk}/dismiss/") for _ in range(2)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b""), (204, b"")]
    assert Receipt.objects.count() == 1


def test_a_visitor_is_told_that_they_are_signed_out(client: Client, ana: User) -> None:
    answer = client.post(f"/broadcasts/{published(ana).pk}/dismiss/")

    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")
    assert not Receipt.objects.exists()


def test_what_cannot_be_dismissed(client: Client, ana: User) -> None:
    draft = services.save_broadcast(broadcast=Broadcast(text="x"), by=ana)
    for_staff = published(ana, audience="staff")
    lasting = published(ana, dismissible=False)
    client.force_login(ana)

    for path, status in ((draft.pk, 404), (for_staff.pk, 404), (10**6, 404), (lasting.pk, 409)):
        assert client.post(f"/broadcasts/{path}/dismiss/").status_code == status
    assert client.get(f"/broadcasts/{lasting.pk}/dismiss/").status_code == 405
    assert not Receipt.objects.exists()


def test_pages_have_the_banners_of_their_reader(client: Client, ana: User) -> None:
    published(ana, text="For <all>")
    published(ana, text="For users", audience="users")

    visitors = client.get("/accounts/login/")
    client.force_login(ana)
    readers = client.get("/alerts/")

    assert [banner["text"] for banner in visitors.context["hub_banners"]["banners"]] == ["For <all>"]
    assert "For &lt;all&gt;</p>" in visitors.content.decode()
    assert [banner["text"] for banner in readers.context["hub_banners"]["banners"]] == ["For users", "For <all>"]
    assert list(readers.context["hub_banners"]["cursors"]) == ["broadcasts:all", "broadcasts:users"]


def test_publish_on_the_page_of_a_new_broadcast(admin_client: Client, admin_user: User) -> None:
    page = admin_client.get(f"{ADMIN}add/").content.decode()
    assert 'name="hub_broadcasts_broadcast_publish"' in page
    assert 'name="hub_broadcasts_broadcast_retract"' not in page

    answer = admin_client.post(f"{ADMIN}add/", form(hub_broadcasts_broadcast_publish=""))

    assert answer.status_code == 302
    broadcast = Broadcast.objects.get()
    assert (broadcast.status, broadcast.created_by, broadcast.text) == (
        "published",
        admin_user,
        "Maintenance at 12:00",
    )
    assert event_types() == ["broadcast.published"]


def test_save_publish_edit_and_retract_in_the_admin(admin_client: Client) -> None:
    admin_client.post(f"{ADMIN}add/", form(_save=""))
    assert event_types() == []
    page = f"{ADMIN}{Broadcast.objects.get().pk}/change/"

    admin_client.post(page, form(hub_broadcasts_broadcast_publish=""))
    assert event_types() == ["broadcast.published"]
    shown = admin_client.get(page).content.decode()
    assert 'name="hub_broadcasts_broadcast_retract"' in shown
    assert 'name="hub_broadcasts_broadcast_publish"' not in shown

    admin_client.post(page, form(_save="", text="Maintenance at 13:00", audience="staff"))
    assert event_types() == ["broadcast.published"] * 2
    assert history("broadcasts:all")[0][1].data["text"] == "Maintenance at 13:00"
    assert Broadcast.objects.get().audience == "everyone"  # it was published to them

    admin_client.post(page, form(hub_broadcasts_broadcast_retract="", text="Maintenance at 13:00"))
    assert event_types() == ["broadcast.published"] * 2 + ["broadcast.retracted"]
    assert Broadcast.objects.get().status == "retracted"


def test_the_admin_explains_what_is_not_valid(admin_client: Client) -> None:
    wrong = form(audience="group", ends_at_0="2026-08-21", ends_at_1="10:00:00")

    answer = admin_client.post(f"{ADMIN}add/", wrong | {"hub_broadcasts_broadcast_publish": ""})

    assert answer.status_code == 200
    assert "A broadcast ends after it starts." in answer.content.decode()
    assert "Choose the group whose members are the audience." in answer.content.decode()
    assert not Broadcast.objects.exists()


def test_a_broadcast_that_has_ended_is_saved_but_not_published(admin_client: Client) -> None:
    ended = timezone.now() - timedelta(minutes=1)
    changes = {
        "starts_at_0": "2020-01-01",
        "ends_at_0": f"{ended:%Y-%m-%d}",
        "ends_at_1": f"{ended:%H:%M:%S}",
        "hub_broadcasts_broadcast_publish": "",
    }

    answer = admin_client.post(f"{ADMIN}add/", form(**changes), follow=True)

    assert "Not published: It has ended already." in answer.content.decode()
    assert Broadcast.objects.get().status == "draft"
    assert event_types() == []


def test_list_actions_publish_and_retract(admin_client: Client, admin_user: User) -> None:
    drafts = [services.save_broadcast(broadcast=Broadcast(text=text), by=admin_user) for text in ("one", "two")]
    chosen = [draft.pk for draft in drafts]

    admin_client.post(ADMIN, {"action": "publish_chosen", "_selected_action": chosen})
    assert event_types() == ["broadcast.published"] * 2
    admin_client.post(ADMIN, {"action": "retract_chosen", "_selected_action": chosen})
    assert event_types() == ["broadcast.published"] * 2 + ["broadcast.retracted"] * 2
    admin_client.post(ADMIN, {"action": "delete_selected", "_selected_action": chosen, "post": "yes"})
    assert not Broadcast.objects.exists()


def test_the_list_counts_who_dismissed(admin_client: Client, ana: User) -> None:
    services.dismiss_broadcast(broadcast=published(ana), user=ana)

    page = admin_client.get(ADMIN)

    assert [broadcast.dismissals for broadcast in page.context["cl"].queryset] == [1]


def test_staff_without_the_permission_cannot_publish(client: Client, django_user_model: type[User]) -> None:
    staff = django_user_model.objects.create_user("staff", is_staff=True)
    broadcast = services.save_broadcast(broadcast=Broadcast(text="x"), by=staff)
    client.force_login(staff)

    answer = client.post(f"{ADMIN}{broadcast.pk}/change/", form(hub_broadcasts_broadcast_publish=""))

    assert answer.status_code == 403
    assert event_types() == []


def test_a_group_is_chosen_in_the_admin(admin_client: Client) -> None:
    group = Group.objects.create(name="night shift")

    data = form(audience="group", group=str(group.pk), hub_broadcasts_broadcast_publish="")
    admin_client.post(f"{ADMIN}add/", data)

    [event] = history(f"broadcasts:group-{group.pk}")[0]
    assert event.data["text"] == "Maintenance at 12:00"
