"""Alerts as rows. They are written by `notifications.alerts.services` alone."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone


def is_link(text: str) -> bool:
    """Whether the text is a web address that may become a link: http(s), with a host."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and text.isprintable()


def validate_link(text: str) -> None:
    """Raise ValidationError for what may not become a link."""
    if not is_link(text):
        raise ValidationError("A link begins with http:// or https://.")


class Alert(models.Model):
    """One thing that is or was wrong: a row for each fingerprint of a source, whatever happened to it since.

    `starts_at`, `ends_at` (None while it fires), `count` (how often it was reported firing) and the acknowledgement
    are those of its latest incident.
    """

    class Status(models.TextChoices):
        FIRING = "firing"
        RESOLVED = "resolved"

    class Severity(models.TextChoices):
        CRITICAL = "critical"
        WARNING = "warning"
        INFO = "info"

    source = models.CharField(max_length=64)
    fingerprint = models.CharField(max_length=255)
    status = models.CharField(max_length=8, choices=Status, default=Status.FIRING)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    name = models.CharField(max_length=255)
    summary = models.TextField(blank=True)
    description = models.TextField(blank=True)
    labels = models.JSONField(default=dict, blank=True)
    annotations = models.JSONField(default=dict, blank=True)
    group_key = models.TextField(blank=True)
    starts_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(default=timezone.now)
    count = models.PositiveIntegerField(default=0)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    runbook_url = models.TextField("runbook", blank=True, validators=[validate_link])
    source_url = models.TextField("source link", blank=True, validators=[validate_link])

    class Meta:
        constraints = (models.UniqueConstraint(fields=["source", "fingerprint"], name="hub_alerts_source_fingerprint"),)
        indexes = (
            models.Index(fields=["status", "-last_seen_at"], name="hub_alerts_status"),
            # Read for every page: the count of what needs somebody.
            models.Index(
                fields=["id"],
                condition=models.Q(status="firing", acknowledged_at__isnull=True),
                name="hub_alerts_unacknowledged",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.severity}, {self.status})"
