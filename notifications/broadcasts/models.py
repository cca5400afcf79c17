"""Broadcasts as rows: one for each, and a receipt for each user who did something with it."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator
from django.db import models
from django.utils import timezone

from notifications.broadcasts import topics

MAX_TEXT_LENGTH = 2_000


class Broadcast(models.Model):
    """A message to an audience, from its start to its end once it is published."""

    class Severity(models.TextChoices):
        CRITICAL = "critical"
        WARNING = "warning"
        INFO = "info"

    class Audience(models.TextChoices):
        EVERYONE = "everyone", "everyone, visitors included"
        USERS = "users", "everyone who is signed in"
        STAFF = "staff", "staff"
        GROUP = "group", "members of a group"

    class Status(models.TextChoices):
        DRAFT = "draft"
        PUBLISHED = "published"
        RETRACTED = "retracted"

    text = models.TextField(
        validators=[MaxLengthValidator(MAX_TEXT_LENGTH)], help_text="Plain text; web addresses become links."
    )
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.INFO)
    audience = models.CharField(max_length=8, choices=Audience, default=Audience.EVERYONE)
    group = models.ForeignKey(Group, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    starts_at = models.DateTimeField("starts", default=timezone.now)
    ends_at = models.DateTimeField("ends", null=True, blank=True, help_text="Empty: it stays until it is retracted.")
    dismissible = models.BooleanField(
        default=True, help_text="Whether readers may close it; it never returns to who did."
    )
    status = models.CharField(max_length=9, choices=Status, default=Status.DRAFT, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    published_at = models.DateTimeField(null=True, blank=True, editable=False)
    retracted_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=models.Q(ends_at__isnull=True) | models.Q(ends_at__gt=models.F("starts_at")),
                name="hub_broadcasts_ends_after_start",
                violation_error_message="A broadcast ends after it starts.",
            ),
            models.CheckConstraint(
                condition=models.Q(audience="group") ^ models.Q(group__isnull=True),
                name="hub_broadcasts_group",
                violation_error_message="A group belongs to the audience “members of a group”, and only to it.",
            ),
        )
        indexes = (
            # Read for every page.
            models.Index(
                fields=["starts_at"],
                condition=models.Q(status="published"),
                name="hub_broadcasts_published",
            ),
        )

    def __str__(self) -> str:
        return self.text if len(self.text) <= 60 else f"{self.text[:59]}…"

    def clean(self) -> None:
        """Raise ValidationError by field, where the database would only name a constraint."""
        errors = {}
        if self.ends_at is not None and self.starts_at is not None and self.ends_at <= self.starts_at:
            errors["ends_at"] = "A broadcast ends after it starts."
        if self.audience == self.Audience.GROUP and self.group_id is None:
            errors["group"] = "Choose the group whose members are the audience."
        if self.audience != self.Audience.GROUP and self.group_id is not None:
            errors["group"] = "A group belongs to the audience “members of a group”, and only to it."
        if errors:
            raise ValidationError(errors)

    @property
    def topic(self) -> str:
        """The topic that carries this broadcast to its audience."""
        if self.audience == self.Audience.GROUP:
            assert self.group_id is not None
            return topics.group_topic(self.group_id)
        return {
            self.Audience.EVERYONE.value: topics.EVERYONE_TOPIC,
            self.Audience.USERS.value: topics.USERS_TOPIC,
            self.Audience.STAFF.value: topics.STAFF_TOPIC,
        }[self.audience]


class Receipt(models.Model):
    """What one user did with one broadcast; there is none for those who only saw it."""

    broadcast = models.ForeignKey(Broadcast, on_delete=models.CASCADE, related_name="receipts")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    dismissed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=["broadcast", "user"], name="hub_broadcasts_receipt_once"),)

    def __str__(self) -> str:
        return f"receipt of broadcast {self.broadcast_id} by user {self.user_id}"
