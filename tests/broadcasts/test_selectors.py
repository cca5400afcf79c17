"""Who sees which broadcasts, and who may subscribe to their topics."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.utils import timezone
from pytest_django import Settings

from notifications.broadcasts import selectors, services
from notifications.broadcasts.models import Broadcast
from notifications.delivery.identity import Identity, TokenUser
from notifications.events.topics import resolve

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def people(django_user_model: type[User]) -> dict[str, object]:
    """One of each audience; the member is in the group "night shift"."""
    member = django_user_model.objects.create_user("member")
    member.groups.add(Group.objects.create(name="night shift"))
    return {
        "visitor": AnonymousUser(),
        "token": TokenUser(Identity(user="customer-7", from_token=True)),
        "user": django_user_model.objects.create_user("user"),
        "staff": django_user_model.objects.create_user("staff", is_staff=True),
        "member": member,
    }


@pytest.mark.parametrize(
    ("who", "audiences"),
    [
        ("visitor", ["everyone"]),
        ("token", ["everyone", "users"]),
        ("user", ["everyone", "users"]),
        ("staff", ["everyone", "users", "staff"]),
        ("member", ["everyone", "users", "group"]),
    ],
)
def test_an_audience_sees_its_broadcasts_and_may_subscribe_to_its_topics(
    people: dict[str, object], who: str, audiences: list[str]
) -> None:
    group = Group.objects.get()
    for audience in ("group", "staff", "users", "everyone"):
        broadcast = Broadcast(text=audience, audience=audience, group=group if audience == "group" else None)
        services.publish_broadcast(broadcast=broadcast, by=people["staff"])
    topics = {
        "everyone": "broadcasts:all",
        "users": "broadcasts:users",
        "staff": "broadcasts:staff",
        "group": f"broadcasts:group-{group.pk}",
    }
    user = people[who]

    assert selectors.topics_for(user) == [topics[audience] for audience in audiences]
    if who != "token":  # its bearer has no pages
        assert [banner.text for banner in selectors.active_banners(user=user)] == audiences
    for audience, topic in topics.items():
        assert resolve(topic).allows("subscribe", user) is (audience in audiences)
        assert not resolve(topic).allows("publish", user)


def test_banners_are_there_from_publication_to_their_end(people: dict[str, object]) -> None:
    now = timezone.now()
    hour = timedelta(hours=1)
    for text, starts_at, ends_at in (
        ("over soon", now - hour, now + hour),
        ("for ever", now - 2 * hour, None),
        ("later", now + hour, None),
        ("over", now - 2 * hour, now - hour),
        ("draft", now, None),
        ("retracted", now, None),
    ):
        Broadcast.objects.create(text=text, starts_at=starts_at, ends_at=ends_at, status="published")
    Broadcast.objects.filter(text__in=["draft", "retracted"]).update(status="draft")
    Broadcast.objects.filter(text="retracted").update(status="retracted")

    state = selectors.banners_state(user=people["visitor"])

    assert [banner["text"] for banner in state["banners"]] == ["later", "over soon", "for ever"]
    assert [banner["text"] for banner in state["banners"] if banner["id"] in state["current"]] == [
        "over soon",
        "for ever",
    ]


def test_cursors_stand_behind_what_the_state_has(people: dict[str, object]) -> None:
    services.publish_broadcast(broadcast=Broadcast(text="one"), by=people["staff"])

    state = selectors.banners_state(user=people["visitor"])

    assert list(state["cursors"]) == ["broadcasts:all"]
    assert state["cursors"]["broadcasts:all"]["offset"] == 1
    assert [banner["text"] for banner in state["banners"]] == ["one"]


def test_a_user_of_very_many_groups_has_subscriptions_left(people: dict[str, object]) -> None:
    user = User.objects.get(username="user")
    user.groups.set(Group.objects.bulk_create([Group(name=f"group {number}") for number in range(100)]))

    assert len(selectors.topics_for(user)) == 2 + selectors.MAX_GROUPS
