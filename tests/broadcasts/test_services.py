"""Broadcasts are written, published, edited, retracted and dismissed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.utils import timezone
from pytest_django import Settings

from notifications.broadcasts import selectors, services
from notifications.broadcasts.models import Broadcast, Receipt
from notifications.events import Event, user_topic
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def admin(django_user_model: type[User]) -> User:
    return django_user_model.objects.create_user("admin", is_staff=True)


@pytest.fixture
def ana(django_user_model: type[User]) -> User:
    return django_user_model.objects.create_user("ana")


def published(by: User, **fields: Any) -> Broadcast:
    return services.publish_broadcast(broadcast=Broadcast(**{"text": "Maintenance at 12:00", **fields}), by=by)


def events(topic: str = "broadcasts:all") -> list[Event]:
    return history(topic, limit=None)[0]


def test_a_draft_is_stored_and_told_to_nobody(admin: User) -> None:
    services.save_broadcast(broadcast=Broadcast(text="Maintenance"), by=admin)

    stored = Broadcast.objects.get()
    assert (stored.status, stored.created_by, stored.published_at) == ("draft", admin, None)
    assert events() == []


def test_publishing_sends_the_banner_to_its_audience(admin: User) -> None:
    broadcast = published(admin, severity="warning")

    assert Broadcast.objects.get().status == "published"
    assert broadcast.published_at is not None
    assert events() == [
        Event(
            topic="broadcasts:all",
            type="broadcast.published",
            key=str(broadcast.pk),
            data={
                "id": broadcast.pk,
                "text": "Maintenance at 12:00",
                "severity": "warning",
                "starts_at": broadcast.starts_at.isoformat(),
                "ends_at": None,
                "dismissible": True,
            },
        )
    ]


@pytest.mark.parametrize(
    ("audience", "topic"),
    [("everyone", "broadcasts:all"), ("users", "broadcasts:users"), ("staff", "broadcasts:staff")],
)
def test_each_audience_has_its_topic(admin: User, audience: str, topic: str) -> None:
    published(admin, audience=audience)

    assert [event.type for event in events(topic)] == ["broadcast.published"]


def test_a_group_has_a_topic_of_its_own(admin: User) -> None:
    group = Group.objects.create(name="night shift")

    published(admin, audience="group", group=group)

    assert [event.type for event in events(f"broadcasts:group-{group.pk}")] == ["broadcast.published"]
    assert events() == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ends_at": timedelta(hours=1), "starts_at": timedelta(hours=2)}, "ends_at"),
        ({"ends_at": timedelta(hours=-1), "starts_at": timedelta(hours=-2)}, "ends_at"),
        ({"audience": "group"}, "group"),
        ({"audience": "nobody"}, "audience"),
        ({"text": ""}, "text"),
        ({"text": "x" * 2_001}, "text"),
        ({"severity": "purple"}, "severity"),
    ],
)
def test_what_is_not_valid_is_refused_before_anything_is_written(
    admin: User, fields: dict[str, Any], field: str
) -> None:
    now = timezone.now()
    fields = {name: now + value if isinstance(value, timedelta) else value for name, value in fields.items()}

    with pytest.raises(ValidationError) as refusal:
        published(admin, **fields)

    assert field in refusal.value.message_dict
    assert not Broadcast.objects.exists()
    assert events() == []


def test_a_group_without_its_audience_is_refused(admin: User) -> None:
    group = Group.objects.create(name="night shift")

    with pytest.raises(ValidationError) as refusal:
        published(admin, group=group)

    assert "group" in refusal.value.message_dict


def test_the_database_keeps_the_rules_too(admin: User) -> None:
    now = timezone.now()

    with pytest.raises(IntegrityError):
        Broadcast.objects.create(text="x", starts_at=now, ends_at=now)
    with pytest.raises(IntegrityError):
        Broadcast.objects.create(text="x", audience="group")


def test_editing_a_published_broadcast_sends_the_new_text(admin: User) -> None:
    broadcast = published(admin)
    broadcast.text = "Maintenance at 13:00"

    services.save_broadcast(broadcast=broadcast, by=admin)
    services.save_broadcast(broadcast=broadcast, by=admin)  # nothing new

    assert [(event.type, event.data["text"]) for event in events()] == [
        ("broadcast.published", "Maintenance at 12:00"),
        ("broadcast.published", "Maintenance at 13:00"),
    ]


def test_an_edit_from_an_old_page_does_not_publish_a_retracted_broadcast_again(admin: User) -> None:
    broadcast = published(admin)
    old = Broadcast.objects.get()
    services.retract_broadcast(broadcast=broadcast)
    old.text = "Maintenance at 13:00"

    services.save_broadcast(broadcast=old, by=admin)

    assert (Broadcast.objects.get().status, Broadcast.objects.get().text) == ("retracted", "Maintenance at 13:00")
    assert [event.type for event in events()] == ["broadcast.published", "broadcast.retracted"]


def test_a_broadcast_keeps_the_audience_that_it_was_published_to(admin: User) -> None:
    broadcast = published(admin)
    broadcast.audience = "staff"

    with pytest.raises(ValidationError, match="another audience"):
        services.publish_broadcast(broadcast=broadcast, by=admin)

    assert Broadcast.objects.get().audience == "everyone"
    assert events("broadcasts:staff") == []


def test_retracting_takes_it_off_once(admin: User) -> None:
    broadcast = published(admin)

    services.retract_broadcast(broadcast=broadcast)
    services.retract_broadcast(broadcast=broadcast)

    assert (broadcast.status, Broadcast.objects.get().status) == ("retracted", "retracted")
    last = Event(topic="broadcasts:all", type="broadcast.retracted", key=str(broadcast.pk), data={"id": broadcast.pk})
    assert events()[1:] == [last]


def test_a_retracted_broadcast_can_be_published_again(admin: User) -> None:
    broadcast = services.retract_broadcast(broadcast=published(admin))

    services.publish_broadcast(broadcast=broadcast, by=admin)

    assert (broadcast.status, broadcast.retracted_at) == ("published", None)
    assert [event.type for event in events()][1:] == ["broadcast.retracted", "broadcast.published"]


def test_a_draft_cannot_be_retracted(admin: User) -> None:
    draft = services.save_broadcast(broadcast=Broadcast(text="Maintenance"), by=admin)

    assert services.retract_broadcast(broadcast=draft).status == "draft"
    assert events() == []


def test_deleting_takes_it_off_open_pages(admin: User) -> None:
    broadcast = published(admin)
    key = broadcast.pk

    Broadcast.objects.all().delete()

    assert [(event.type, event.data["id"]) for event in events()][1:] == [("broadcast.retracted", key)]


def test_deleting_its_group_takes_it_off_open_pages(admin: User) -> None:
    group = Group.objects.create(name="night shift")
    published(admin, audience="group", group=group)
    topic = f"broadcasts:group-{group.pk}"

    group.delete()

    assert not Broadcast.objects.exists()
    assert [event.type for event in events(topic)] == ["broadcast.published", "broadcast.retracted"]


def test_dismissing_is_for_good_and_reaches_the_users_other_devices(admin: User, ana: User) -> None:
    broadcast = published(admin)

    services.dismiss_broadcast(broadcast=broadcast, user=ana)
    services.dismiss_broadcast(broadcast=broadcast, user=ana)

    receipt = Receipt.objects.get()
    assert (receipt.broadcast, receipt.user) == (broadcast, ana)
    assert receipt.dismissed_at is not None
    assert events(user_topic(ana)) == [
        Event(
            topic=user_topic(ana),
            type="broadcast.dismissed",
            key=str(broadcast.pk),
            data={"id": broadcast.pk},
        )
    ]
    assert selectors.active_banners(user=ana) == []
    assert selectors.active_banners(user=admin) == [broadcast]


def test_what_must_be_read_cannot_be_dismissed(admin: User, ana: User) -> None:
    broadcast = published(admin, dismissible=False)

    with pytest.raises(ValidationError):
        services.dismiss_broadcast(broadcast=broadcast, user=ana)

    assert not Receipt.objects.exists()


def test_a_dismissed_broadcast_stays_away_when_it_is_edited(admin: User, ana: User) -> None:
    broadcast = published(admin)
    services.dismiss_broadcast(broadcast=broadcast, user=ana)
    broadcast.text = "Maintenance at 13:00"
    services.save_broadcast(broadcast=broadcast, by=admin)

    state = selectors.banners_state(user=ana)

    assert (state["banners"], state["dismissed"]) == ([], [broadcast.pk])
