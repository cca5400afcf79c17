"""What a source says about an alert, and what that makes of the alert's row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from notifications.alerts import topics
from notifications.alerts.models import Alert, is_link
from notifications.events.text import storable

#: A report of a resolved alert's own firing that comes within this time is a late copy; a later one means that it
#: fires again, as a monitoring system that was unreachable for a while reports it with its old start.
LATE_COPIES = timedelta(minutes=5)

MAX_NAME_LENGTH = 255

_SEVERITIES = {
    Alert.Severity.CRITICAL: ("critical", "crit", "fatal", "emergency", "emerg", "disaster", "error", "page", "high"),
    Alert.Severity.INFO: ("info", "information", "informational", "notice", "none", "debug", "low"),
}
_SEVERITY_OF_WORD = {word: severity for severity, words in _SEVERITIES.items() for word in words}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One statement of a source about one alert, cleaned of what a row cannot hold.

    `starts_at` and `ends_at` are None where the source does not know them.
    """

    fingerprint: str
    status: Alert.Status
    severity: Alert.Severity
    name: str
    summary: str = ""
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    group_key: str = ""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    runbook_url: str = ""
    source_url: str = ""


_CONTENT = (
    "severity",
    "name",
    "summary",
    "description",
    "labels",
    "annotations",
    "group_key",
    "runbook_url",
    "source_url",
)


def apply(report: Report, alert: Alert, *, now: datetime) -> str | None:
    """Bring `alert` (locked by the caller, and new while its count is 0) up to date with `report`, unsaved.

    Returns the type of the event that tells of it. A repetition that says nothing new counts, and returns None; a
    late copy changes nothing at all.
    """
    if report.status == Alert.Status.FIRING:
        return _fired(report, alert, now)
    return _resolved(report, alert, now)


def _fired(report: Report, alert: Alert, now: datetime) -> str | None:
    if _begins(report, alert, now):
        _begin(report, alert, now)
        alert.ends_at = None
        return topics.FIRING
    if alert.status == Alert.Status.RESOLVED:
        return None
    alert.count += 1
    alert.last_seen_at = now
    # Alertmanager keeps the earliest start that any Prometheus reports.
    alert.starts_at = min(alert.starts_at, report.starts_at or alert.starts_at)
    return topics.CHANGED if _take_content(report, alert) else None


def _begins(report: Report, alert: Alert, now: datetime) -> bool:
    """Whether a firing report is about an incident that the row does not know yet."""
    if alert.count == 0:
        return True
    if report.starts_at is not None and report.starts_at > alert.starts_at:
        return True
    if alert.status == Alert.Status.FIRING:
        return False
    return report.starts_at is None or now - alert.last_seen_at > LATE_COPIES


def _resolved(report: Report, alert: Alert, now: datetime) -> str | None:
    unknown = alert.count == 0 or (report.starts_at is not None and report.starts_at > alert.starts_at)
    if not unknown and (alert.status == Alert.Status.RESOLVED or _is_of_earlier_incident(report, alert)):
        return None
    if unknown:
        _begin(report, alert, now)
    else:
        _take_content(report, alert)
    alert.status = Alert.Status.RESOLVED
    alert.last_seen_at = now
    alert.ends_at = report.ends_at or now
    alert.starts_at = min(alert.starts_at, alert.ends_at)
    return topics.RESOLVED


def _is_of_earlier_incident(report: Report, alert: Alert) -> bool:
    starts_at, ends_at = report.starts_at, report.ends_at
    return starts_at is not None and ends_at is not None and starts_at < alert.starts_at and ends_at < alert.starts_at


def _begin(report: Report, alert: Alert, now: datetime) -> None:
    _take_content(report, alert)
    alert.status = report.status
    alert.starts_at = report.starts_at or now
    alert.last_seen_at = now
    alert.count = 1
    alert.acknowledged_by = None
    alert.acknowledged_at = None


def _take_content(report: Report, alert: Alert) -> bool:
    """Copy what the alert says; returns whether any of it is new."""
    changed = [name for name in _CONTENT if getattr(alert, name) != getattr(report, name)]
    for name in changed:
        setattr(alert, name, getattr(report, name))
    return bool(changed)


def clean_text(value: Any, limit: int | None = None) -> str:
    """Text as a database can hold it, without space around it."""
    text = value if isinstance(value, str) else "" if value is None else msgspec.json.encode(value).decode()
    text = storable(text).strip()
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def clean_labels(labels: Mapping[str, Any] | None) -> dict[str, str]:
    """Labels or annotations as text by name."""
    return {clean_text(name): clean_text(value) for name, value in (labels or {}).items()}


def severity_of(word: Any) -> Alert.Severity:
    """The hub's severity for any source's word for it; a warning where it has none or an unknown one."""
    return _SEVERITY_OF_WORD.get(clean_text(word).lower(), Alert.Severity.WARNING)


def fingerprint_of(fingerprint: str | None, *, name: str, labels: Mapping[str, str]) -> str:
    """A source's fingerprint, or one made of what identifies an alert when the source gives none."""
    given = clean_text(fingerprint)
    if 0 < len(given) <= MAX_NAME_LENGTH:
        return given
    identifying = given or msgspec.json.encode([name, dict(labels)], order="sorted").decode()
    return hashlib.sha256(identifying.encode()).hexdigest()[:16]


def link_of(address: Any) -> str:
    """A web address that may become a link, or "" for anything that is not http(s)."""
    text = clean_text(address)
    return text if is_link(text) else ""


def moment_of(value: datetime | None) -> datetime | None:
    """A moment in UTC, or None for Go's zero time and for what lies outside of the calendar."""
    if value is None or value.year <= 1:
        return None
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        return None
