"""Runs of tasks, so that the page of tasks survives a reload. They are written by `notifications.progress.services`."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class TaskRun(models.Model):
    """One run of a LiveTask: its state, and how far it got."""

    class State(models.TextChoices):
        QUEUED = "queued"
        STARTED = "started"
        PROGRESS = "progress"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        RETRIED = "retried"

    id = models.CharField(max_length=255, primary_key=True)
    name = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State.choices, default=State.STARTED)
    done = models.PositiveBigIntegerField(default=0)
    total = models.PositiveBigIntegerField(null=True, blank=True)
    note = models.CharField(max_length=500, blank=True)
    error = models.TextField(blank=True)
    result_url = models.CharField(max_length=500, blank=True)
    #: What the task was started with, so that it can be sent again; None when it was not started through its row.
    kwargs = models.JSONField(null=True, editable=False)
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    started_at = models.DateTimeField(db_index=True)
    updated_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = (
            models.Index(
                fields=["updated_at"], condition=models.Q(finished_at__isnull=True), name="hub_progress_running"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} {self.id}: {self.state}"
