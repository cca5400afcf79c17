"""Keys of the HTTP API, stored as hashes."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from notifications.api.patterns import parse_patterns


def validate_patterns(text: str) -> None:
    """Raise ValidationError when the text has no patterns, or one that is not valid."""
    parse_patterns(text)


class ApiKey(models.Model):
    """A key of another service. Its text is known to that service alone; here is what tells that it is the one."""

    name = models.CharField(max_length=120, help_text="Who uses the key.")
    prefix = models.CharField(max_length=8, unique=True, editable=False)
    hash = models.CharField(max_length=64, unique=True, editable=False)
    patterns = models.TextField(
        "topics",
        default="*",
        validators=[validate_patterns],
        help_text="Topics that the key may publish to and read, one pattern per line; * stands for any number of "
        "characters and ? for one.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = "API key"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.name} ({self.shown_prefix})"

    @property
    def shown_prefix(self) -> str:
        """The part of the key that may be shown."""
        return f"hub_{self.prefix}_…"
