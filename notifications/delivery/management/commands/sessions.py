"""`manage.py sessions`: who is connected, and ending it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from notifications.delivery.roster import LiveSession
from notifications.delivery.selectors import live_sessions, still_live, user_id_of
from notifications.delivery.services import end_sessions
from notifications.events.exceptions import HubError
from notifications.events.management.table import table

HEAD = ("CLIENT", "USER", "NAME", "SIGNED IN WITH", "ADDRESS", "PROTOCOL", "AGENT", "SINCE", "TOPICS", "SERVER")


class Command(BaseCommand):
    help = "Lists the sessions of connected clients, the newest first, and ends them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", metavar="NAME_OR_ID", help="the sessions of one user")
        parser.add_argument("--client", metavar="ID", help="the session of one client, as the list shows its id")
        parser.add_argument("--end", action="store_true", help="disconnect them; they do not come back by themselves")
        parser.add_argument(
            "--sign-out",
            action="store_true",
            help="with --end: end the Django sessions too, so that the user has to sign in again",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name, client = options["user"], options["client"]
        if options["sign_out"] and not options["end"]:
            raise CommandError("--sign-out goes with --end")
        if options["end"] and not (name or client):
            raise CommandError("--end needs --user or --client: whose sessions are to be ended?")
        user = user_id_of(name) if name else None
        try:
            if options["end"]:
                self._end(user, client, sign_out=options["sign_out"], whose=name or client)
            else:
                self._list(user, client)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except HubError as error:
            raise CommandError(str(error)) from error

    def _list(self, user: str | None, client: str | None) -> None:
        found = [session for session in live_sessions(user=user) if client in (None, session.id)]
        self.stdout.write(table(HEAD, [_row(session) for session in found]))

    def _end(self, user: str | None, client: str | None, *, sign_out: bool, whose: str) -> None:
        ended = end_sessions(user=user, client=client, sign_out=sign_out)
        left = len(still_live(ended))
        if left:
            raise CommandError(f"{left} of {len(ended)} sessions of {whose} are still connected; try again")
        if not ended and not sign_out:
            raise CommandError(f"{whose} has no live session; `manage.py sessions` shows who has")
        signed_out = ", and the user has to sign in again" if sign_out else ""
        self.stdout.write(f"{len(ended)} {'session' if len(ended) == 1 else 'sessions'} of {whose} ended{signed_out}.")


def _row(session: LiveSession) -> tuple[str, ...]:
    opened = datetime.fromtimestamp(session.opened_at, UTC).isoformat(sep=" ", timespec="seconds")
    row = (
        session.id,
        session.user,
        session.name,
        session.credential,
        session.address,
        session.protocol,
        session.agent,
        opened.removesuffix("+00:00") if session.opened_at else "",
        str(session.subscriptions),
        session.server,
    )
    return tuple(_printable(cell) or "-" for cell in row)


def _printable(text: str) -> str:
    """The text without what a terminal would take for a command: names and agents are what clients say."""
    return "".join(character for character in text if character.isprintable())
