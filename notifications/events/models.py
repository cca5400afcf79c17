"""Rows of the durable log, written by the modules in `notifications.events.logs` alone, and leases."""

from __future__ import annotations

import secrets

from django.db import models


def new_epoch() -> str:
    """The name of a new run of offsets."""
    return secrets.token_hex(4)


class LogEpoch(models.Model):
    """The epoch of all durable topics: one row, replaced when offsets are no longer continuous (a restore)."""

    value = models.CharField(max_length=32, default=new_epoch)

    def __str__(self) -> str:
        return self.value


class TopicHead(models.Model):
    """The offset of the newest event of a durable topic, and the last accepted version with its epoch.

    Its row lock orders the numbering of events.
    """

    topic = models.CharField(max_length=255, primary_key=True)
    offset = models.PositiveBigIntegerField(default=0)
    # With defaults of the database, as the fields of StoredEvent: processes of the release before do not know them.
    version = models.PositiveBigIntegerField(default=0, db_default=0)
    version_epoch = models.CharField(max_length=255, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return f"{self.topic} @ {self.offset}"


class StoredEvent(models.Model):
    """An event of a durable topic: staged without an offset by its transaction, numbered after the commit."""

    topic = models.CharField(max_length=255)
    offset = models.PositiveBigIntegerField(null=True)
    type = models.CharField(max_length=120)
    time = models.DateTimeField(db_index=True)
    encoded = models.TextField()
    exclude = models.CharField(max_length=64, blank=True)
    version = models.PositiveBigIntegerField(default=0, db_default=0)
    version_epoch = models.CharField(max_length=255, blank=True, default="", db_default="")

    class Meta:
        constraints = (models.UniqueConstraint(fields=["topic", "offset"], name="hub_events_topic_offset"),)
        indexes = (
            models.Index(fields=["topic", "id"], condition=models.Q(offset__isnull=True), name="hub_events_pending"),
        )

    def __str__(self) -> str:
        return f"{self.topic} @ {self.offset if self.offset is not None else 'pending'}: {self.type}"


class SetAsideEvent(models.Model):
    """A staged event that could not be sent, taken out of the way of the others until somebody decides about it."""

    class Reason(models.TextChoices):
        UNDECLARED = "undeclared", "nothing declares its topic"
        UNREADABLE = "unreadable", "its text is no event"
        REFUSED = "refused", "the database refused its offset"

    topic = models.CharField(max_length=255)
    type = models.CharField(max_length=120)
    time = models.DateTimeField()
    encoded = models.TextField("event")
    exclude = models.CharField(max_length=64, blank=True)
    version = models.PositiveBigIntegerField(default=0)
    version_epoch = models.CharField(max_length=255, blank=True, default="")
    reason = models.CharField(max_length=16, choices=Reason)
    error = models.TextField(blank=True, help_text="What was met at the last attempt.")
    attempts = models.PositiveIntegerField(default=1)
    set_aside_at = models.DateTimeField(auto_now_add=True)
    tried_at = models.DateTimeField("last tried at")

    class Meta:
        verbose_name = "event set aside"
        verbose_name_plural = "events set aside"
        ordering = ("-pk",)
        indexes = (models.Index(fields=["reason", "topic"], name="hub_events_set_aside"),)

    def __str__(self) -> str:
        return f"{self.topic}: {self.type}"


class IdempotencyKey(models.Model):
    """What a publisher's idempotency key did on a durable topic, until it is forgotten."""

    topic = models.CharField(max_length=255)
    key = models.CharField(max_length=255)
    event = models.ForeignKey(StoredEvent, on_delete=models.CASCADE, related_name="+")
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=["topic", "key"], name="hub_events_idempotency"),)

    def __str__(self) -> str:
        return f"{self.topic}: {self.key}"


class Lease(models.Model):
    """Which of several processes does something, until when; written by `notifications.events.leases`."""

    name = models.CharField(max_length=64, primary_key=True)
    holder = models.CharField(max_length=255)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name}: {self.holder}"
