"""Reads of alerts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Case, IntegerField, Q, QuerySet, Value, When
from django.utils import timezone

from notifications.alerts.models import Alert
from notifications.alerts.topics import TOPIC
from notifications.events.selectors import position
from notifications.web.state import cursor_state

OPEN_ALERTS = 500
RESOLVED_ALERTS = 50
RESOLVED_FOR = timedelta(days=7)
COUNTED_IDS = 500

_UNACKNOWLEDGED = Q(status=Alert.Status.FIRING, acknowledged_at__isnull=True)


class OpenAlerts(NamedTuple):
    """How many alerts fire that nobody has acknowledged, and the ids of the newest of them."""

    total: int
    ids: list[int]


def alert_state(alert: Alert) -> dict[str, Any]:
    """An alert as pages and events have it: JSON types, times as ISO 8601."""
    return {
        "id": alert.pk,
        "fingerprint": alert.fingerprint,
        "source": alert.source,
        "status": str(alert.status),
        "severity": str(alert.severity),
        "name": alert.name,
        "summary": alert.summary,
        "description": alert.description,
        "labels": alert.labels,
        "annotations": alert.annotations,
        "starts_at": alert.starts_at.isoformat(),
        "ends_at": _iso(alert.ends_at),
        "last_seen_at": alert.last_seen_at.isoformat(),
        "count": alert.count,
        "acknowledged_by": _acknowledged_by(alert),
        "acknowledged_at": _iso(alert.acknowledged_at),
        "runbook_url": alert.runbook_url,
        "source_url": alert.source_url,
    }


def listed_alerts() -> list[Alert]:
    """Firing alerts (not acknowledged ones first, the worst first, the newest first), then the newly resolved."""
    severity = Case(
        When(severity=Alert.Severity.CRITICAL, then=Value(0)),
        When(severity=Alert.Severity.WARNING, then=Value(1)),
        default=Value(2),
        output_field=IntegerField(),
    )
    taken = Case(When(acknowledged_at__isnull=True, then=Value(0)), default=Value(1), output_field=IntegerField())
    firing = _with_user().filter(status=Alert.Status.FIRING).order_by(taken, severity, "-starts_at")
    since = timezone.now() - RESOLVED_FOR
    resolved = _with_user().filter(status=Alert.Status.RESOLVED, last_seen_at__gte=since).order_by("-last_seen_at")
    return [*firing[:OPEN_ALERTS], *resolved[:RESOLVED_ALERTS]]


def firing_unacknowledged_count() -> int:
    """How many alerts fire that nobody has acknowledged."""
    return Alert.objects.filter(_UNACKNOWLEDGED).count()


def firing_unacknowledged() -> OpenAlerts:
    """The alerts that need somebody; counted in the database only when there are more than are listed."""
    rows = Alert.objects.filter(_UNACKNOWLEDGED).order_by("-pk").values_list("pk", flat=True)
    ids = list(rows[:COUNTED_IDS])
    return OpenAlerts(len(ids) if len(ids) < COUNTED_IDS else firing_unacknowledged_count(), ids)


def is_firing(*, source: str, fingerprint: str) -> bool:
    """Whether this alert fires now."""
    return Alert.objects.filter(source=source, fingerprint=fingerprint, status=Alert.Status.FIRING).exists()


def alerts_page_state() -> dict[str, Any]:
    """What the page of alerts opens with."""
    # The cursor first: an alert that changes between the two reads is then in the rows and comes again, not never.
    cursor = cursor_state(position(TOPIC))
    alerts = listed_alerts()
    listed = sum(alert.status == Alert.Status.FIRING for alert in alerts)
    firing = listed if listed < OPEN_ALERTS else Alert.objects.filter(status=Alert.Status.FIRING).count()
    return {"alerts": [alert_state(alert) for alert in alerts], "unlisted": firing - listed, "cursor": cursor}


def alert_count_state() -> dict[str, Any]:
    """What the count of open alerts begins with on every page."""
    cursor = cursor_state(position(TOPIC))
    open_alerts = firing_unacknowledged()
    return {"count": open_alerts.total, "ids": open_alerts.ids, "cursor": cursor}


def _with_user() -> QuerySet[Alert]:
    return Alert.objects.select_related("acknowledged_by")


def _acknowledged_by(alert: Alert) -> str | None:
    if alert.acknowledged_by is not None:
        return alert.acknowledged_by.get_username()
    # It stays acknowledged when the account is deleted.
    return "a former user" if alert.acknowledged_at is not None else None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
