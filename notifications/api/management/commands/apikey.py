"""`manage.py apikey`: make, list and revoke keys of the HTTP API."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from notifications.api.selectors import all_keys, key_by_prefix
from notifications.api.services import create_api_key, revoke_api_key
from notifications.events.management.table import table


class Command(BaseCommand):
    help = "Makes, lists and revokes keys of the HTTP API."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="create | list | revoke")
        create = actions.add_parser("create", help="make a key, and print it once")
        create.add_argument("name", help="who uses the key")
        create.add_argument(
            "--topics",
            nargs="+",
            default=["*"],
            metavar="PATTERN",
            help="topics that it reaches, with * and ?; all by default",
        )
        actions.add_parser("list", help="list the keys")
        revoke = actions.add_parser("revoke", help="refuse a key from now on")
        revoke.add_argument("prefix", help="how the key begins, as `list` shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "create":
            self._create(options["name"], options["topics"])
        elif options["action"] == "list":
            self._list()
        else:
            self._revoke(options["prefix"])

    def _create(self, name: str, patterns: list[str]) -> None:
        try:
            key, text = create_api_key(name=name, patterns=patterns)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        self.stdout.write(text)
        # Not on the same stream, so that KEY=$(manage.py apikey create …) has the key alone.
        topics = ", ".join(key.patterns.splitlines())
        self.stderr.write(f"{key.name} may publish to and read {topics}. The key is not stored: copy it now.")

    def _list(self) -> None:
        rows = [
            (
                key.shown_prefix,
                key.name,
                ", ".join(key.patterns.splitlines()),
                _day(key.created_at),
                _moment(key.last_used_at),
                "valid" if key.revoked_at is None else f"revoked {_moment(key.revoked_at)}",
            )
            for key in all_keys()
        ]
        self.stdout.write(table(("KEY", "NAME", "TOPICS", "CREATED", "LAST USED", "STATE"), rows))

    def _revoke(self, prefix: str) -> None:
        key = key_by_prefix(prefix)
        if key is None:
            raise CommandError(f"no key begins with {prefix!r}; `manage.py apikey list` shows them")
        revoke_api_key(key=key)
        self.stdout.write(f"{key} is revoked: it is refused from now on.")


def _day(time: datetime) -> str:
    return time.date().isoformat()


def _moment(time: datetime | None) -> str:
    return "never" if time is None else time.isoformat(sep=" ", timespec="minutes")
