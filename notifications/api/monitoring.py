"""What watches the process: `/metrics` for Prometheus, `/health/live` and `/health/ready` for its supervisor."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from notifications.delivery.auth import Receive, Scope, Send, header
from notifications.delivery.responses import Problem, Response, allow_only, json_response, respond
from notifications.delivery.switchboard import current_switchboard
from notifications.events import conf, counters
from notifications.events.threads import in_database_thread

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0


class MetricsApplication:
    """Serves the metrics of this process, to bearers of `HUB_METRICS_TOKEN` where it is set."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = self._answer(scope)
        except Problem as problem:
            response = problem.response
        await respond(scope, send, response)

    def _answer(self, scope: Scope) -> Response:
        allow_only(scope, "GET", "HEAD")
        expected: str = conf.get("HUB_METRICS_TOKEN")
        scheme, _, given = header(scope, b"authorization").partition(" ")
        if expected and not (
            scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), expected.encode())
        ):
            challenge = ((b"www-authenticate", b'Bearer realm="metrics"'),)
            raise Problem(401, "give HUB_METRICS_TOKEN as a bearer token", headers=challenge)
        encode, content_type = choose_encoder(header(scope, b"accept"))
        return Response(200, encode(REGISTRY), content_type)


class HealthApplication:
    """Tells whether the process lives, and whether it is ready for requests; asks for no key and no host name."""

    def __init__(self) -> None:
        self._migrated = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope)
        except Problem as problem:
            response = problem.response
        await respond(scope, send, response)

    async def _answer(self, scope: Scope) -> Response:
        page = scope["path"].rstrip("/").rpartition("/")[2]
        if page not in ("live", "ready"):
            raise Problem(404, "there are /health/live and /health/ready")
        allow_only(scope, "GET", "HEAD")
        if page == "live":
            return Response(200, b"ok", "text/plain; charset=utf-8")
        checks = await self._checks()
        ready = all(outcome == "ok" for outcome in checks.values())
        return json_response({"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503)

    async def _checks(self) -> dict[str, str]:
        outcomes = await asyncio.gather(
            _checked(self._database, "the database does not answer, or lacks migrations"),
            _checked(_log, "the log cannot be reached"),
            _checked(_switchboard, "the switchboard could not start"),
        )
        return dict(zip(("database", "log", "switchboard"), outcomes, strict=True))

    async def _database(self) -> str:
        return await in_database_thread(self._database_state)

    def _database_state(self) -> str:
        # Looked for until there are no more: a process does not lose migrations, and the search is not cheap.
        if self._migrated:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            return "ok"
        executor = MigrationExecutor(connection)
        if missing := executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return f"{len(missing)} migrations are not applied: run `manage.py migrate`"
        self._migrated = True
        return "ok"


async def _checked(check: Callable[[], Awaitable[str]], failure: str) -> str:
    """What a check says, or `failure` when it raises or takes too long."""
    try:
        return await asyncio.wait_for(check(), CHECK_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever a check meets, the process is not ready
        logger.warning("not ready: %s: %r", failure, error)
        return failure


async def _log() -> str:
    # The totals are kept where the window log is, so that reading them asks Redis, or the process that owns it.
    await asyncio.to_thread(counters.totals)
    return "ok"


async def _switchboard() -> str:
    return "the process is stopping" if (await current_switchboard()).draining else "ok"
