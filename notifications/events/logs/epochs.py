"""The epoch of the durable log: ended when the database was put back to older rows."""

from __future__ import annotations

import logging

from django.db import transaction
from django.db.models import Sum

from notifications.events.event import Cursor
from notifications.events.logs.numbering import current_epoch, database
from notifications.events.logs.reached import Reached, memory
from notifications.events.models import LogEpoch, TopicHead, new_epoch

logger = logging.getLogger(__name__)


def begin_epoch() -> str:
    """Begin a new epoch of all durable topics, so that every client is told that it may have missed events."""
    with transaction.atomic(using=database()):
        return _begin(_locked())


def begin_epoch_unless_at(topic: str, lost: Cursor) -> Cursor:
    """Begin a new epoch unless a topic is at a position that it had, or beyond; returns where it is."""
    with transaction.atomic(using=database()):
        epoch = _locked()
        head = TopicHead.objects.using(database()).filter(pk=topic).first()
        offset, value = head.offset if head else 0, epoch.value
        if value == lost.epoch and offset < lost.offset:
            value = _begin(epoch)
    return Cursor(offset, value)


def notice_restore() -> bool:
    """Begin a new epoch when more durable events are remembered than the database has; True when it did.

    Otherwise what it has is remembered. Without a Redis or a socket there is no place for that, and nobody knows.
    Raises LogUnavailable.
    """
    remembering = memory()
    if remembering is None:
        return False
    # Before the database is asked, whose number only grows: another process may write a later one meanwhile.
    known = remembering.recall()
    value, number = current_epoch(), _numbered()
    restored = value == known.epoch and number < known.number
    if restored:
        with transaction.atomic(using=database()):
            current = _locked()
            if current.value != known.epoch:
                return False  # another process has noticed as well
            value = _begin(current)
        logger.warning("%d durable events are gone: the database was put back to older data", known.number - number)
    remembering.remember(Reached(value, number))
    return restored


def _numbered() -> int:
    """How many durable events there have been."""
    return TopicHead.objects.using(database()).aggregate(number=Sum("offset"))["number"] or 0


def _locked() -> LogEpoch:
    current_epoch()  # begun where there is none
    return LogEpoch.objects.using(database()).select_for_update().order_by("pk")[0]


def _begin(epoch: LogEpoch) -> str:
    epoch.value = new_epoch()
    epoch.save(update_fields=["value"])
    return epoch.value
