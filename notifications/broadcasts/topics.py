from __future__ import annotations

from typing import Any

from notifications.events import Topic, durable

PUBLISHED = "broadcast.published"
RETRACTED = "broadcast.retracted"
DISMISSED = "broadcast.dismissed"

EVERYONE_TOPIC = "broadcasts:all"
USERS_TOPIC = "broadcasts:users"
STAFF_TOPIC = "broadcasts:staff"


def group_topic(group_id: int) -> str:
    """The topic of the broadcasts to one group."""
    return f"broadcasts:group-{group_id}"


class EveryoneTopic(Topic):
    """Broadcasts to everyone who has a page open."""

    pattern = EVERYONE_TOPIC
    retention = durable(days=30)
    asks_only_identity = True

    def may_subscribe(self, user: Any) -> bool:
        """everyone, visitors included"""
        return True


class UsersTopic(Topic):
    """Broadcasts to those who are signed in."""

    pattern = USERS_TOPIC
    retention = durable(days=30)
    asks_only_identity = True

    def may_subscribe(self, user: Any) -> bool:
        """signed-in users"""
        return bool(user.is_authenticated)


class StaffTopic(Topic):
    """Broadcasts to staff."""

    pattern = STAFF_TOPIC
    retention = durable(days=30)

    def may_subscribe(self, user: Any) -> bool:
        """staff"""
        return bool(user.is_staff)


class GroupTopic(Topic):
    """Broadcasts to the members of a group."""

    pattern = "broadcasts:group-<int:group>"
    retention = durable(days=30)

    def may_subscribe(self, user: Any, group: int) -> bool:
        """members of the group"""
        groups = getattr(user, "groups", None)  # the bearer of a token that names no user of this site has none
        return groups is not None and groups.filter(pk=group).exists()
