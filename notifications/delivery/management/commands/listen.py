"""`manage.py listen TOPIC…`: print events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from notifications.delivery.listening import Listener
from notifications.events.event import Cursor
from notifications.events.exceptions import HubError
from notifications.events.topics import resolve


class Command(BaseCommand):
    help = "Prints the events of topics as they come, one line of JSON each, until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("topics", nargs="+", metavar="TOPIC", help="name of a topic, such as chat:lobby")
        parser.add_argument(
            "--since",
            metavar="OFFSET | EPOCH:OFFSET | all",
            help="print what is kept after this position first; all of it from the oldest",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        since = cursor_of(options["since"])
        try:
            topics = [resolve(name) for name in options["topics"]]
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(Listener(self.stdout, self.stderr.write).run(topics, since=since))
                _discard_output()
        except HubError as error:
            raise CommandError(str(error)) from error


def _discard_output() -> None:
    """Have the interpreter flush to nowhere at its end, as the reader of stdout went away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cursor_of(text: str | None) -> Cursor | None:
    """The position that `--since` names. Raises CommandError when it is none."""
    if text is None:
        return None
    if text == "all":
        return Cursor()
    epoch, _, offset = text.rpartition(":")
    if not offset.isdecimal() or len(offset) > 18:
        raise CommandError(f"--since is an offset, an epoch and an offset (EPOCH:OFFSET), or all; not {text!r}")
    return Cursor(int(offset), epoch)
