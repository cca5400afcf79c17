"""`/metrics` and `/health/…`."""

from __future__ import annotations

import httpx
import pytest
from django.db import connection
from pytest_django import Settings

from notifications.api.asgi import HealthApplication, MetricsApplication
from notifications.delivery.switchboard import current_switchboard, stop_current
from notifications.events import apublish
from notifications.events.threads import in_database_thread
from tests.api.conftest import client_of
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)


async def ask(application: object, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with client_of(application) as client:  # type: ignore[arg-type]
        return await client.request(method, path, headers=headers)


def sample(text: str, name: str) -> float:
    """The value of a sample of the exposition."""
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


async def test_metrics_count_by_namespace(settings: Settings, api: httpx.AsyncClient) -> None:
    published, requests = (
        'hub_published_total{namespace="open"}',
        'hub_api_requests_total{code="102",method="publish"}',
    )
    before = (await ask(MetricsApplication(), "/metrics")).text

    await apublish("open:1", "message", 1)
    await api.post("/api/publish", json={"channel": "nobody:declared", "data": 1})
    after = await ask(MetricsApplication(), "/metrics")

    assert after.status_code == 200
    assert after.headers["content-type"].startswith("text/plain; version=")
    for name in (published, requests):
        assert sample(after.text, name) == sample(before, name) + 1
    for name in ("hub_connections", "hub_delivered_total", "hub_gaps_repaired_total", "process_resident_memory_bytes"):
        assert f"# TYPE {name} " in after.text
    assert "open:1" not in after.text


async def test_metrics_in_the_format_that_is_asked_for() -> None:
    answer = await ask(MetricsApplication(), "/metrics", Accept="application/openmetrics-text; version=1.0.0")

    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_metrics_are_for_bearers_of_the_token(settings: Settings) -> None:
    settings.HUB_METRICS_TOKEN = "secret"

    assert (await ask(MetricsApplication(), "/metrics", Authorization="Bearer secret")).status_code == 200
    for given in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Basic secret"},
    ):
        answer = await ask(MetricsApplication(), "/metrics", **given)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == 'Bearer realm="metrics"'
        assert "hub_" not in answer.text.replace("HUB_METRICS_TOKEN", "")


async def test_metrics_are_only_read() -> None:
    assert (await ask(MetricsApplication(), "/metrics", "POST")).status_code == 405
    assert (await ask(MetricsApplication(), "/metrics", "HEAD")).content == b""


async def test_a_process_that_answers_lives() -> None:
    answer = await ask(HealthApplication(), "/health/live", Host="any.host.at.all")

    assert (answer.status_code, answer.text) == (200, "ok")
    assert (await ask(HealthApplication(), "/health/other")).status_code == 404
    assert (await ask(HealthApplication(), "/health/live", "POST")).status_code == 405


async def test_a_process_is_ready_with_database_log_and_switchboard() -> None:
    health = HealthApplication()

    for _ in range(2):
        answer = await ask(health, "/health/ready", Host="any.host.at.all")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "ok", "checks": {"database": "ok", "log": "ok", "layer": "ok", "switchboard": "ok"}},
        )
    await stop_current()


async def test_a_stopping_process_is_not_ready() -> None:
    (await current_switchboard()).drain()

    answer = await ask(HealthApplication(), "/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {
        "status": "unavailable",
        "checks": {"database": "ok", "log": "ok", "layer": "ok", "switchboard": "the process is stopping"},
    }
    await stop_current()


async def test_a_process_without_its_log_is_not_ready(settings: Settings) -> None:
    await current_switchboard()
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}"

    answer = await ask(HealthApplication(), "/health/ready")

    assert answer.status_code == 503
    assert answer.json()["checks"] == {
        "database": "ok",
        "log": "the log cannot be reached",
        "layer": "ok",
        "switchboard": "ok",
    }
    settings.HUB_REDIS_URL = ""
    await stop_current()


async def test_a_process_with_missing_migrations_is_not_ready() -> None:
    def forget() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE app = 'hub_api'")

    def remember() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_migrations (app, name, applied)"
                " VALUES ('hub_api', '0001_initial', CURRENT_TIMESTAMP)"
            )

    await in_database_thread(forget)
    try:
        answer = await ask(HealthApplication(), "/health/ready")
    finally:
        await in_database_thread(remember)

    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] == "1 migrations are not applied: run `manage.py migrate`"
    await stop_current()
