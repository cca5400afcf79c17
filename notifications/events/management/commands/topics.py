"""`manage.py topics`: what is declared."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from notifications.events.management.table import table
from notifications.events.topics import Topic, registry

HEAD = ("TOPIC", "RETENTION", "TYPE", "SUBSCRIBE", "PUBLISH", "HISTORY", "PRESENCE", "CHANNELS GROUP")


class Command(BaseCommand):
    help = "Lists the declared topics: what they keep, and who may do what."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(table(HEAD, [_row(declaration) for declaration in registry.declarations]))


def _row(declaration: Topic) -> tuple[str, ...]:
    may = declaration.describe_permissions()
    return (
        declaration.pattern,
        str(declaration.retention),
        declaration.default_type,
        may["subscribe"],
        may["publish"],
        may["read_history"] if declaration.retention.kept else "-",
        may["see_presence"] if declaration.presence else "-",
        declaration.channels_group or "-",
    )
