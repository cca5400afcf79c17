"""The epoch of the durable log: ended when the database was put back to older rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Sum

from notifications.events import conf
from notifications.events.event import Cursor
from notifications.events.logs.numbering import current_epoch, database
from notifications.events.models import LogEpoch, TopicHead, new_epoch
from notifications.events.redis_clients import sync_client, translated_errors

logger = logging.getLogger(__name__)

_REACHED = (Path(__file__).parent / "reached.lua").read_text()
_REACHED_KEY = "hub:reached"


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
    """Begin a new epoch when Redis remembers more durable events than the database has; True when it did.

    Otherwise Redis is told how many there are. Without a Redis nobody knows. Raises LogUnavailable.
    """
    if not conf.get("HUB_REDIS_URL"):
        return False
    with translated_errors():
        # Before the database is asked, whose number only grows: another process may write a later one meanwhile.
        remembered: Any = sync_client().hmget(_REACHED_KEY, "e", "n")
    epoch, reached = (remembered[0] or b"").decode(), int(remembered[1] or 0)
    value, number = current_epoch(), _numbered()
    restored = value == epoch and number < reached
    if restored:
        with transaction.atomic(using=database()):
            current = _locked()
            if current.value != epoch:
                return False  # another process has noticed as well
            value = _begin(current)
        logger.warning("%d durable events are gone: the database was put back to older data", reached - number)
    with translated_errors():
        sync_client().eval(_REACHED, 1, _REACHED_KEY, value, number)
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
