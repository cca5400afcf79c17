from __future__ import annotations

from django.db import models
from django.utils import timezone


class Revocation(models.Model):
    """Says when something of a user or a login changed, so that what was signed before is checked anew.

    `subject` is "user:" and the user's id, "login:" and the name of a Django session in the hub, or "" for everybody.
    Rows are of use for as long as signed cookies live.
    """

    subject = models.CharField(max_length=255)
    revoked_at = models.DateTimeField(default=timezone.now, db_index=True)

    def __str__(self) -> str:
        return f"{self.subject or 'everybody'} at {self.revoked_at:%F %T}"


class LiveSession(Revocation):
    """A connected client (`roster.LiveSession`) in the admin: has its permissions, and no rows.

    A proxy and not an unmanaged model, because commands such as dumpdata read the tables of those.
    """

    class Meta:
        proxy = True
        default_permissions = ("view",)
        permissions = (("end_session", "Can end live sessions"),)
        verbose_name = "live session"
