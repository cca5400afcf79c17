"""`manage.py newepoch`: tell every client that topics were put back to older data, after a restore from a back-up."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable


class Command(BaseCommand):
    help = (
        "Begins a new epoch of the durable topics. Run it after the database was restored from a back-up, before or "
        "after the hub is started: clients whose cursors are of the time before are told that they missed events."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--windows", action="store_true", help="of the topics in Redis as well, whose keys were restored"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        from notifications.events.logs.epochs import begin_epoch
        from notifications.events.logs.redis import RedisLog

        if options["windows"]:
            if not (url := conf.get("HUB_REDIS_URL")):
                raise CommandError("there is no Redis: HUB_REDIS_URL is empty")
            try:
                begun = RedisLog(url).begin_epochs()
            except LogUnavailable as error:
                raise CommandError(str(error)) from error
            self.stdout.write(f"new epochs of {begun} topics in Redis")
        self.stdout.write(f"new epoch of the durable topics: {begin_epoch()}")
