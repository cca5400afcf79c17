"""`manage.py publish TOPIC TYPE '{json}'`: publish one event."""

from __future__ import annotations

from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from notifications.events import publish
from notifications.events.exceptions import HubError


class Command(BaseCommand):
    help = "Publishes one event, and prints its offset and epoch."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("topic", help="name of the topic, such as chat:lobby")
        parser.add_argument("type", help="type of the event, such as chat.message")
        parser.add_argument("data", nargs="?", default="null", help="the event's data, as JSON")
        parser.add_argument("--key", help="what the event is about, for topics that keep the newest per key")
        parser.add_argument("--idempotency-key", help="do not publish again what was published with this key")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            data = msgspec.json.decode(options["data"])
        except (ValueError, RecursionError) as error:
            raise CommandError(f"""the data is not JSON ({error}); quote it, as in '{{"message": "hi"}}'""") from error
        try:
            event = publish(
                options["topic"],
                options["type"],
                data,
                key=options["key"],
                idempotency_key=options["idempotency_key"],
            )
        except HubError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(f"the database did not take the event: {error}") from error
        self.stdout.write(f"offset {event.offset or 0}  epoch {event.epoch or '-'}")
