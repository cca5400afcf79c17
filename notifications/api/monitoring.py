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
DEAF = "what this process publishes does not come back to it"


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


class Check:
    """One thing that a process needs to be ready. `failure` says what is wrong when asking raises or takes too long."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[str]], failure: str) -> None:
        self.name = name
        self._ask = ask
        self._failure = failure
        self._asking: asyncio.Task[str] | None = None

    async def outcome(self) -> str:
        """What there is to say within `CHECK_SECONDS`: "ok", or what is wrong."""
        # One question at a time, however many probes come: each may hold one of the few threads for the database.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._answer())
        asking = self._asking
        await asyncio.wait([asking], timeout=CHECK_SECONDS)
        return asking.result() if asking.done() else self._failed("no answer")

    async def _answer(self) -> str:
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever a check meets, the process is not ready
            return self._failed(error)

    def _failed(self, reason: object) -> str:
        logger.warning("not ready: %s: %r", self._failure, reason)
        return self._failure


class HealthApplication:
    """Tells whether the process lives, and whether it is ready for requests; asks for no key and no host name."""

    def __init__(self) -> None:
        self._migrated = False
        self._checks = (
            Check("database", self._database, "the database does not answer, or lacks migrations"),
            Check("log", _log, "the log cannot be reached"),
            Check("layer", _layer, DEAF),
            Check("switchboard", _switchboard, "the switchboard could not start"),
        )

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
        outcomes = await asyncio.gather(*(check.outcome() for check in self._checks))
        ready = all(outcome == "ok" for outcome in outcomes)
        checks = {check.name: outcome for check, outcome in zip(self._checks, outcomes, strict=True)}
        return json_response({"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503)

    async def _database(self) -> str:
        return await in_database_thread(self._database_state)

    def _database_state(self) -> str:
        # Looked for until there are no more, as the search is not cheap, and again after a fault: what has come back
        # may be an older database.
        if self._migrated:
            self._migrated = False
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        else:
            executor = MigrationExecutor(connection)
            if missing := executor.migration_plan(executor.loader.graph.leaf_nodes()):
                return f"{len(missing)} migrations are not applied: run `manage.py migrate`"
        self._migrated = True
        return "ok"


async def _log() -> str:
    # The totals are kept where the window log is, so that reading them asks Redis, or the process that owns it.
    await asyncio.to_thread(counters.totals)
    return "ok"


async def _layer() -> str:
    # What this process publishes each second has come back to it, the whole way that events take.
    return DEAF if await (await current_switchboard()).housekeeping.canary.late() else "ok"


async def _switchboard() -> str:
    return "the process is stopping" if (await current_switchboard()).draining else "ok"
