"""Reads of broadcasts."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q, QuerySet
from django.utils import timezone

from notifications.broadcasts import topics
from notifications.broadcasts.models import Broadcast, Receipt
from notifications.events.selectors import positions
from notifications.web.state import cursor_state

MAX_BANNERS = 50
#: Each group is a subscription of every page, and a session may have only so many.
MAX_GROUPS = 64


def banner_state(broadcast: Broadcast) -> dict[str, Any]:
    """A broadcast as pages and events have it: JSON types, times as ISO 8601."""
    return {
        "id": broadcast.pk,
        "text": broadcast.text,
        "severity": str(broadcast.severity),
        "starts_at": broadcast.starts_at.isoformat(),
        "ends_at": None if broadcast.ends_at is None else broadcast.ends_at.isoformat(),
        "dismissible": broadcast.dismissible,
    }


def topics_for(user: Any) -> list[str]:
    """The topics that carry broadcasts to `user`, who may be a visitor."""
    names = [topics.EVERYONE_TOPIC]
    if user.is_authenticated:
        names.append(topics.USERS_TOPIC)
        if user.is_staff:
            names.append(topics.STAFF_TOPIC)
        if (groups := getattr(user, "groups", None)) is not None:
            ids = groups.order_by("pk").values_list("pk", flat=True)[:MAX_GROUPS]
            names += [topics.group_topic(group) for group in ids]
    return names


def addressed_to(user: Any) -> QuerySet[Broadcast]:
    """Broadcasts whose audience `user` belongs to, whatever their status and time."""
    audience = Q(audience=Broadcast.Audience.EVERYONE)
    if user.is_authenticated:
        audience |= Q(audience=Broadcast.Audience.USERS)
        if user.is_staff:
            audience |= Q(audience=Broadcast.Audience.STAFF)
        if (groups := getattr(user, "groups", None)) is not None:
            audience |= Q(audience=Broadcast.Audience.GROUP, group__in=groups.all())
    return Broadcast.objects.filter(audience)


def active_banners(*, user: Any) -> list[Broadcast]:
    """Published broadcasts for `user` that have not ended and that they have not dismissed, the newest first.

    Those that start later are among them: an open page shows them when their time comes.
    """
    return list(_unended(user).exclude(pk__in=_dismissed(user)).order_by("-starts_at", "-pk")[:MAX_BANNERS])


def banners_state(*, user: Any) -> dict[str, Any]:
    """What the banners of a page begin with.

    `current` are the ids of banners that have started; `dismissed` those of banners that the user has closed, and
    that must not return when an administrator edits them.
    """
    # The cursors first: what changes between the two reads is then in the rows and comes again, not never.
    cursors = {topic: cursor_state(cursor) for topic, cursor in positions(topics_for(user)).items()}
    now = timezone.now()
    banners = active_banners(user=user)
    return {
        "banners": [banner_state(banner) for banner in banners],
        "current": [banner.pk for banner in banners if banner.starts_at <= now],
        "dismissed": list(_unended(user).filter(pk__in=_dismissed(user)).values_list("pk", flat=True)),
        "cursors": cursors,
    }


def with_receipt_counts(broadcasts: QuerySet[Broadcast]) -> QuerySet[Broadcast]:
    """The broadcasts with `dismissals`: how many users have dismissed each."""
    return broadcasts.annotate(dismissals=Count("receipts", filter=Q(receipts__dismissed_at__isnull=False)))


def _unended(user: Any) -> QuerySet[Broadcast]:
    return addressed_to(user).filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=timezone.now()), status=Broadcast.Status.PUBLISHED
    )


def _dismissed(user: Any) -> QuerySet[Receipt, int]:
    if not user.is_authenticated:
        return Receipt.objects.none().values_list("broadcast_id", flat=True)
    return Receipt.objects.filter(user=user, dismissed_at__isnull=False).values_list("broadcast_id", flat=True)
