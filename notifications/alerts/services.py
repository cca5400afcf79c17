"""Writes of alerts: reports come in, people acknowledge, and each change is an event of its transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction
from django.utils import timezone

from notifications.alerts import alertmanager, topics
from notifications.alerts.models import Alert
from notifications.alerts.reports import (
    MAX_NAME_LENGTH,
    Report,
    apply,
    clean_labels,
    clean_text,
    fingerprint_of,
    link_of,
    moment_of,
    severity_of,
)
from notifications.alerts.selectors import alert_state
from notifications.audit.services import record
from notifications.events import Publication, conf, publish_many
from notifications.events.event import Sender
from notifications.events.topics import sender_of

#: What an event leaves out, in this order, when its alert is larger than an event may be; the row has all of it.
_OPTIONAL = {"annotations": {}, "description": "", "labels": {}, "source_url": "", "runbook_url": "", "summary": ""}

_REPORTED_FIELDS = (
    "status",
    "severity",
    "name",
    "summary",
    "description",
    "labels",
    "annotations",
    "group_key",
    "starts_at",
    "ends_at",
    "last_seen_at",
    "count",
    "acknowledged_by",
    "acknowledged_at",
    "runbook_url",
    "source_url",
)


def publish_alert(
    *,
    name: str,
    severity: str = "warning",
    summary: str = "",
    labels: Mapping[str, Any] | None = None,
    source: str = "hub",
    fingerprint: str | None = None,
    status: str = "firing",
    description: str = "",
    annotations: Mapping[str, Any] | None = None,
    group_key: str = "",
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    runbook_url: str = "",
    source_url: str = "",
) -> Alert:
    """Raise an alert, count it again, or resolve it, from any synchronous code; returns its row.

    Alerts of one `source` (at most 64 characters) with the same `fingerprint` are one alert; without one it is made
    of the name and the labels. `status` is "firing" or "resolved", `severity` critical, warning, info or a usual
    word for one of them. `starts_at` tells incidents apart: without it, an alert that fires while it fires already
    is counted, and one that was resolved fires again. Links that are not http(s) are left out.

    Raises ValueError for an empty name or source and for another status.
    """
    if not 0 < len(source) <= 64:
        raise ValueError("the source of an alert has 1 to 64 characters")
    cleaned_name, cleaned_labels = clean_text(name, MAX_NAME_LENGTH), clean_labels(labels)
    if not cleaned_name:
        raise ValueError("an alert needs a name")
    report = Report(
        fingerprint=fingerprint_of(fingerprint, name=cleaned_name, labels=cleaned_labels),
        status=Alert.Status(status),
        severity=severity_of(severity),
        name=cleaned_name,
        summary=clean_text(summary),
        description=clean_text(description),
        labels=cleaned_labels,
        annotations=clean_labels(annotations),
        group_key=clean_text(group_key),
        starts_at=moment_of(starts_at),
        ends_at=moment_of(ends_at) if status == Alert.Status.RESOLVED else None,
        runbook_url=link_of(runbook_url),
        source_url=link_of(source_url),
    )
    return receive(source=source, reports=[report])[0]


def receive_alertmanager(*, payload: alertmanager.Payload) -> list[Alert]:
    """Take a notification of Alertmanager; returns the rows of its alerts. It may come any number of times.

    Raises alertmanager.InvalidPayload, before anything is written.
    """
    return receive(source=alertmanager.SOURCE, reports=alertmanager.reports_of(payload))


def receive(*, source: str, reports: Iterable[Report]) -> list[Alert]:
    """Bring the rows of a source up to date with reports, all or none; returns the row of each report.

    Rows are locked in the order of their fingerprints, so that two notifications about one group wait for each
    other instead of locking each other out.
    """
    received = list(reports)
    fingerprints = sorted({report.fingerprint for report in received})
    now = timezone.now()
    with transaction.atomic():
        alerts = _locked(source, fingerprints)
        publications = []
        for report in received:
            alert = alerts[report.fingerprint]
            event_type = apply(report, alert, now=now)
            if event_type is not None:
                publications.append(_publication(event_type, alert))
        # One by one: for a group of 300, bulk_update's CASE expressions take ten times as long to build.
        for alert in alerts.values():
            alert.save(update_fields=_REPORTED_FIELDS)
        publish_many(publications)
    return [alerts[report.fingerprint] for report in received]


def _locked(source: str, fingerprints: list[str]) -> dict[str, Alert]:
    """The rows of a source by fingerprint, locked until the transaction ends; a new one has the count 0."""
    rows = Alert.objects.filter(source=source, fingerprint__in=fingerprints)
    known = set(rows.values_list("fingerprint", flat=True))
    Alert.objects.bulk_create(
        [Alert(source=source, fingerprint=fingerprint) for fingerprint in fingerprints if fingerprint not in known],
        ignore_conflicts=True,  # another transaction may have been quicker, and then its row is the one
    )
    locked = rows.select_related("acknowledged_by").select_for_update(of=("self",)).order_by("fingerprint")
    return {alert.fingerprint: alert for alert in locked}


def acknowledge(*, alert: Alert, user: Any) -> Alert:
    """Note that `user` looks after an alert; returns its row as it is now.

    The first acknowledgement of an incident stands, and one that is over is left as it is.
    """
    with transaction.atomic():
        locked = Alert.objects.select_related("acknowledged_by").select_for_update(of=("self",)).get(pk=alert.pk)
        if locked.status == Alert.Status.FIRING and locked.acknowledged_at is None:
            locked.acknowledged_by = user
            locked.acknowledged_at = timezone.now()
            locked.save(update_fields=["acknowledged_by", "acknowledged_at"])
            publish_many([_publication(topics.ACKNOWLEDGED, locked, sender=sender_of(user))])
            record(action=topics.ACKNOWLEDGED, subject=str(locked), actor=user, details=_audited(locked))
    return locked


def _audited(alert: Alert) -> dict[str, Any]:
    return {"id": alert.pk, "source": alert.source, "fingerprint": alert.fingerprint, "starts_at": alert.starts_at}


def _publication(event_type: str, alert: Alert, *, sender: Sender | None = None) -> Publication:
    return Publication(topics.TOPIC, event_type, _event_data(alert), key=alert.fingerprint, sender=sender)


def _event_data(alert: Alert) -> dict[str, Any]:
    data = alert_state(alert)
    for name, left_out in _OPTIONAL.items():
        if len(msgspec.json.encode(data)) <= conf.get("HUB_MAX_DATA_BYTES"):
            break
        data[name] = left_out
    return data
