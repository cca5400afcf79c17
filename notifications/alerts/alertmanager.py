"""Alertmanager's webhook payload, version 4. Unknown fields pass, and only `alerts` has to be there."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from notifications.alerts.models import Alert
from notifications.alerts.reports import (
    MAX_NAME_LENGTH,
    Report,
    clean_labels,
    clean_text,
    fingerprint_of,
    link_of,
    moment_of,
    severity_of,
)

SOURCE = "alertmanager"


class PayloadAlert(msgspec.Struct, rename="camel", frozen=True):
    """One alert of the group. Go writes maps that are nil as null."""

    status: str | None = None
    labels: dict[str, Any] | None = None
    annotations: dict[str, Any] | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    generator_url: str | None = msgspec.field(name="generatorURL", default=None)
    fingerprint: str | None = None


class Payload(msgspec.Struct, rename="camel", frozen=True):
    """A notification about one group: the whole group each time, unless `truncatedAlerts` says otherwise."""

    alerts: list[PayloadAlert]
    status: str | None = None
    group_key: str | None = None


_decoder = msgspec.json.Decoder(Payload)


class InvalidPayload(ValueError):
    """The body is not an Alertmanager payload; the message says where it differs."""


def decode(body: bytes) -> Payload:
    """The payload in a request's body. Raises InvalidPayload."""
    try:
        return _decoder.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise InvalidPayload(str(error)) from error


def reports_of(payload: Payload) -> list[Report]:
    """What the payload says about each alert. Raises InvalidPayload for a status that does not exist."""
    return [_report_of(alert, payload) for alert in payload.alerts]


def _report_of(alert: PayloadAlert, payload: Payload) -> Report:
    labels, annotations = clean_labels(alert.labels), clean_labels(alert.annotations)
    status = _status_of(alert.status or payload.status or Alert.Status.FIRING)
    name = clean_text(labels.get("alertname"), MAX_NAME_LENGTH) or "Alert"
    return Report(
        fingerprint=fingerprint_of(alert.fingerprint, name=name, labels=labels),
        status=status,
        severity=severity_of(labels.get("severity")),
        name=name,
        summary=annotations.get("summary") or annotations.get("message", ""),
        description=annotations.get("description", ""),
        labels=labels,
        annotations=annotations,
        group_key=clean_text(payload.group_key),
        starts_at=moment_of(alert.starts_at),
        # While an alert fires it is the zero time, or when Alertmanager will give it up.
        ends_at=moment_of(alert.ends_at) if status == Alert.Status.RESOLVED else None,
        runbook_url=link_of(annotations.get("runbook_url") or annotations.get("runbook")),
        source_url=link_of(alert.generator_url),
    )


def _status_of(word: str) -> Alert.Status:
    try:
        return Alert.Status(word)
    except ValueError as error:
        raise InvalidPayload(f"an alert's status is firing or resolved, not {word[:40]!r}") from error
