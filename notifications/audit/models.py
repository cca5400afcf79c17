"""The audit log as rows: who did what, when, and from where. They are written by `notifications.audit.services`."""

from __future__ import annotations

from typing import Any, NoReturn

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone

MAX_ACTION_LENGTH = 64
MAX_NAME_LENGTH = 255


class AppendOnly(Exception):
    """An entry of the audit log was to be changed or deleted."""


class AuditEntries(models.QuerySet["AuditEntry"]):
    """Entries that can be read and added to."""

    def update(self, **kwargs: Any) -> NoReturn:
        """Raises AppendOnly."""
        raise AppendOnly("entries of the audit log are not changed")

    def delete(self) -> NoReturn:
        """Raises AppendOnly."""
        raise AppendOnly("entries of the audit log are not deleted")

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises AppendOnly: it could write over entries, and an entry comes alone."""
        raise AppendOnly("entries of the audit log are added one by one")


class AuditEntry(models.Model):
    """One thing that somebody did.

    `actor` is the user who did it, as long as there is one, and `actor_name` stays when the account is deleted or
    renamed, or tells who else it was. `address` is the client's, None where there was no request. `action` is a verb
    behind the name of what it is done to, such as `broadcast.published`.
    """

    time = models.DateTimeField(default=timezone.now)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    actor_name = models.CharField("who", max_length=MAX_NAME_LENGTH, blank=True)
    address = models.GenericIPAddressField(null=True)
    action = models.CharField(max_length=MAX_ACTION_LENGTH)
    subject = models.TextField(blank=True)
    details = models.JSONField(default=dict, encoder=DjangoJSONEncoder)

    objects = AuditEntries.as_manager()

    class Meta:
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        # Nobody is given the permission to add, change or delete one: there is nothing that it would allow.
        default_permissions = ("view",)
        ordering = ("-time", "-pk")
        indexes = (
            models.Index(fields=["-time", "-id"], name="hub_audit_time"),
            models.Index(fields=["action", "-time", "-id"], name="hub_audit_action"),
        )

    def __str__(self) -> str:
        return f"{self.action}: {self.subject}" if self.subject else self.action

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Add the entry. Raises AppendOnly for one that is stored already."""
        if not self._state.adding:
            raise AppendOnly("entries of the audit log are not changed")
        kwargs["force_insert"] = True  # an entry made with the key of another one would be written over that one
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises AppendOnly."""
        raise AppendOnly("entries of the audit log are not deleted")
