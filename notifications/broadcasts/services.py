"""Writes of broadcasts. Each change that readers see is an event of its transaction."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from notifications.audit.services import record
from notifications.broadcasts import topics
from notifications.broadcasts.models import Broadcast, Receipt
from notifications.broadcasts.selectors import banner_state
from notifications.events import publish, user_topic


def save_broadcast(*, broadcast: Broadcast, by: Any) -> Broadcast:
    """Store what `by` wrote. A published broadcast reaches open pages as it reads now, if readers see a difference.

    Raises ValidationError when it is not valid, or was published and is given another audience.
    """
    with transaction.atomic():
        before = _locked(broadcast)
        _store(broadcast, before, by=by)
        shown = banner_state(before) if before and before.status == Broadcast.Status.PUBLISHED else None
        if shown is not None and banner_state(broadcast) != shown:
            _announce(broadcast)
            record(action="broadcast.changed", subject=str(broadcast), actor=by, details=_audited(broadcast))
    return broadcast


def publish_broadcast(*, broadcast: Broadcast, by: Any) -> Broadcast:
    """Store a broadcast as it is given and show it on the pages of its audience, from its start to its end.

    Publishing it again sends what it says now. Raises ValidationError when it is not valid, has ended already, or
    was published before and is given another audience.
    """
    now = timezone.now()
    if broadcast.ends_at is not None and broadcast.ends_at <= now:
        raise ValidationError({"ends_at": "It has ended already. Choose a later end, or none."})
    with transaction.atomic():
        _store(broadcast, _locked(broadcast), by=by)
        broadcast.status = Broadcast.Status.PUBLISHED
        broadcast.published_at = broadcast.published_at or now
        broadcast.retracted_at = None
        broadcast.save(update_fields=["status", "published_at", "retracted_at"])
        _announce(broadcast)
        record(action=topics.PUBLISHED, subject=str(broadcast), actor=by, details=_audited(broadcast))
    return broadcast


def retract_broadcast(*, broadcast: Broadcast, by: Any = None) -> Broadcast:
    """Take a published broadcast off all pages; one that is not published is left as it is.

    Without `by` it is the user of the present request who did it.
    """
    with transaction.atomic():
        stored = Broadcast.objects.select_for_update().get(pk=broadcast.pk)
        if stored.status == Broadcast.Status.PUBLISHED:
            stored.status = Broadcast.Status.RETRACTED
            stored.retracted_at = timezone.now()
            stored.save(update_fields=["status", "retracted_at"])
            _withdraw(stored)
            record(action=topics.RETRACTED, subject=str(stored), actor=by, details=_audited(stored))
    broadcast.status, broadcast.retracted_at = stored.status, stored.retracted_at
    return broadcast


def dismiss_broadcast(*, broadcast: Broadcast, user: Any) -> None:
    """Never show a broadcast to `user` again, on any device; doing it again changes nothing.

    Raises ValidationError when it may not be dismissed.
    """
    if not broadcast.dismissible:
        raise ValidationError("This announcement stays until it ends.")
    with transaction.atomic():
        now = timezone.now()
        receipt, _ = Receipt.objects.get_or_create(broadcast=broadcast, user=user)
        dismissed = Receipt.objects.filter(pk=receipt.pk, dismissed_at__isnull=True).update(dismissed_at=now)
        if dismissed:
            publish(user_topic(user), topics.DISMISSED, {"id": broadcast.pk}, key=str(broadcast.pk))


def broadcast_deleted(instance: Broadcast, **_: Any) -> None:
    """Take a broadcast off open pages when its row is about to be deleted."""
    if instance.status == Broadcast.Status.PUBLISHED:
        _withdraw(instance)
        record(action="broadcast.deleted", subject=str(instance), details=_audited(instance))


def _locked(broadcast: Broadcast) -> Broadcast | None:
    """The broadcast as it is stored, locked until the transaction ends; None for a new one."""
    if broadcast._state.adding:
        return None
    return Broadcast.objects.select_for_update().get(pk=broadcast.pk)


def _store(broadcast: Broadcast, before: Broadcast | None, *, by: Any) -> None:
    if before is None:
        broadcast.created_by = by
    else:
        # What only services change is what is stored, however old the row in hand is.
        for name in ("status", "created_by_id", "published_at", "retracted_at"):
            setattr(broadcast, name, getattr(before, name))
        # Open pages that have it could be told on the old topic only, and be overtaken by the new one.
        if before.published_at is not None and broadcast.topic != before.topic:
            raise ValidationError({"audience": "It was published to another audience. Write a new broadcast."})
    broadcast.full_clean()
    broadcast.save()


def _announce(broadcast: Broadcast) -> None:
    publish(broadcast.topic, topics.PUBLISHED, banner_state(broadcast), key=str(broadcast.pk))


def _audited(broadcast: Broadcast) -> dict[str, Any]:
    audience = str(broadcast.group) if broadcast.group is not None else str(broadcast.audience)
    return {**banner_state(broadcast), "audience": audience}


def _withdraw(broadcast: Broadcast) -> None:
    publish(broadcast.topic, topics.RETRACTED, {"id": broadcast.pk}, key=str(broadcast.pk))
