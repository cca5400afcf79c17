"""Runs the whole hub in one process: web server, sockets, and a Celery worker and beat inside."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, CommandParser, call_command
from django.core.management.commands.runserver import naiveip_re
from uvicorn.supervisors import ChangeReload

from hub.embedded import ENABLED
from notifications.events import local

ADMINISTRATOR = "admin"


class Command(BaseCommand):
    """`manage.py runhub [address:]port [--no-worker] [--reload]`."""

    help = "Migrates, makes the administrator at the first start, and serves the hub with a worker and beat inside."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("addrport", nargs="?", default="127.0.0.1:8000", help="[address:]port")
        parser.add_argument("--no-worker", action="store_true", help="Leave the tasks to workers of their own.")
        parser.add_argument("--reload", action="store_true", help="Restart when a source file changes.")

    def handle(self, *args: Any, **options: Any) -> None:
        # Until the server has its own handler, a supervisor's SIGTERM is what Ctrl-C is.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self.run(options)
        except KeyboardInterrupt:
            self.stderr.write("Stopped before the hub was up.")

    def run(self, options: dict[str, Any]) -> None:
        """Prepare what the hub needs, and serve until a signal stops it."""
        listener = listen(options["addrport"])
        Path(settings.HUB_DATA).mkdir(mode=0o700, parents=True, exist_ok=True)
        call_command("migrate", interactive=False, verbosity=0)
        self.make_administrator()
        os.environ[ENABLED] = "0" if options["no_worker"] else "1"
        if options["reload"]:
            self.say_address(listener)
            config = configuration(reload=True, reload_dirs=[str(folder) for folder in source_folders()])
            server = uvicorn.Server(config)
            ChangeReload(config, target=server.run, sockets=[listener]).run()
            return
        server = AnnouncingServer(configuration(), announce=lambda: self.say_address(listener))
        try:
            with signals_end_quietly():
                server.run(sockets=[listener])
        except SystemExit as error:
            raise CommandError("The hub did not start; the reason stands above.") from error

    def make_administrator(self) -> None:
        """Make the first superuser, and print the password once, unless the environment names it."""
        users = get_user_model()._default_manager
        if users.filter(is_superuser=True).exists():
            return
        if users.filter(**{get_user_model().USERNAME_FIELD: ADMINISTRATOR}).exists():
            self.stderr.write(
                f"There is no superuser, and {ADMINISTRATOR!r} is taken: use `manage.py createsuperuser`."
            )
            return
        given = os.environ.get("HUB_ADMIN_PASSWORD", "")
        password = given or secrets.token_urlsafe(12)
        # This process is about to own the memory log; what making a user publishes needs no other to be told.
        local.become_owner()
        try:
            users.create_superuser(username=ADMINISTRATOR, email="", password=password)
        finally:
            local.resign()
        shown = "the one in HUB_ADMIN_PASSWORD" if given else f"{password}   (shown only this once)"
        self.stdout.write(f"\n  Administrator: {ADMINISTRATOR}\n  Password:      {shown}\n")

    def say_address(self, listener: socket.socket) -> None:
        """Print the address to open in a browser."""
        host, port = listener.getsockname()[:2]
        if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = "localhost"
        elif ":" in host:
            host = f"[{host}]"
        self.stdout.write(f"\n  The hub is at http://{host}:{port}/ (Ctrl-C stops it)\n")
        self.stdout.flush()


def listen(addrport: str) -> socket.socket:
    """A socket bound to `[address:]port`, as `runserver` understands it. Raises CommandError when it cannot be."""
    match = naiveip_re.match(addrport)
    # The resolver would take a port beyond the last one for another one.
    if match is None or int(match["port"]) > 65_535:
        raise CommandError(f"{addrport!r} is not a port number or address:port.")
    host, port = (match["addr"] or "127.0.0.1").strip("[]"), int(match["port"])
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Here already, as two sockets may be bound to a port as long as none listens.
        listener.listen()
    except OSError as error:
        raise CommandError(f"The hub cannot listen on {addrport}: {error}.") from error
    return listener


def configuration(**more: Any) -> uvicorn.Config:
    """How uvicorn serves the hub; logging is Django's."""
    return uvicorn.Config(
        "hub.asgi:application",
        ws=settings.HUB_WEBSOCKET_CLASS,
        ws_per_message_deflate=False,
        lifespan="on",
        access_log=False,
        log_config=None,
        # It would believe X-Forwarded-For of whoever connects from this machine; HUB_TRUSTED_PROXIES says who may.
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        **more,
    )


def source_folders() -> list[Path]:
    """The folders of the packages whose changes matter."""
    project = Path(__file__).resolve().parents[3]
    return [project / package for package in ("hub", "notifications", "workers")]


class AnnouncingServer(uvicorn.Server):
    """Calls `announce` when it is ready to answer."""

    def __init__(self, config: uvicorn.Config, *, announce: Any) -> None:
        super().__init__(config)
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.announce()


@contextmanager
def signals_end_quietly() -> Iterator[None]:
    """Let SIGINT and SIGTERM, which uvicorn raises again after it has stopped, end nothing but the server."""

    def stopped(number: int, frame: FrameType | None) -> None:
        """The server has stopped already."""

    before = {number: signal.signal(number, stopped) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
