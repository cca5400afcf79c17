"""`POST /hooks/alertmanager`, as Alertmanager calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from notifications.alerts import hooks
from notifications.alerts.models import Alert
from notifications.delivery import keys
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)

HOOK = "/hooks/alertmanager"
PAYLOAD: dict[str, Any] = {
    "version": "4",
    "groupKey": '{}:{alertname="InstanceDown"}',
    "truncatedAlerts": 0,
    "status": "firing",
    "receiver": "web\\.hook",
    "groupLabels": {"alertname": "InstanceDown"},
    "commonLabels": {"alertname": "InstanceDown", "job": "node", "severity": "critical"},
    "commonAnnotations": {},
    "routeLabels": {},
    "externalURL": "http://am:9093",
    "notification_reason": "first notification",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "InstanceDown", "instance": "h1:9100", "severity": "critical"},
            "annotations": {"summary": "h1 is down", "description": "No answer for 5 minutes."},
            "startsAt": "2026-08-22T08:24:38.326123456Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prom/graph?g0.expr=up",
            "fingerprint": "f404ecabc8dd5cd7",
        }
    ],
}


@pytest.fixture(autouse=True)
def _keys(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    settings.HUB_API_KEYS = ["key of the settings"]
    verifier = {"key for alerts": ("alerts:*",), "key for chat": ("chat:*",)}.get
    keys.register(verifier)
    yield
    keys.unregister(verifier)


def post(client: Client, body: Any = PAYLOAD, *, key: str = "key of the settings", path: str = HOOK) -> HttpResponse:
    return client.post(  # type: ignore[return-value]
        path,
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        content_type="application/json",
        headers={"Authorization": f"Bearer {key}", "User-Agent": "Alertmanager/0.34.0"},
    )


@pytest.mark.parametrize("path", [HOOK, f"{HOOK}/"])
@pytest.mark.parametrize("key", ["key of the settings", "key for alerts"])
def test_a_notification_is_stored_and_announced(client: Client, path: str, key: str) -> None:
    answer = post(client, key=key, path=path)

    assert (answer.status_code, json.loads(answer.content)) == (200, {"received": 1})
    alert = Alert.objects.get()
    assert (alert.name, alert.severity, alert.status, alert.summary) == (
        "InstanceDown",
        "critical",
        "firing",
        "h1 is down",
    )
    assert alert.starts_at.isoformat() == "2026-08-22T08:24:38.326123+00:00"
    assert alert.ends_at is None
    [event] = history("alerts:all")[0]
    assert (event.type, event.data["id"], event.offset) == ("alert.firing", alert.pk, 1)


def test_a_delivery_that_is_repeated_does_no_harm(client: Client) -> None:
    for _ in range(3):
        assert post(client).status_code == 200

    assert Alert.objects.get().count == 3
    assert [event.type for event in history("alerts:all")[0]] == ["alert.firing"]


def test_no_site_can_post_for_its_visitor_and_alertmanager_needs_no_cookie() -> None:
    assert post(Client(enforce_csrf_checks=True)).status_code == 200


def test_what_newer_versions_add_and_older_ones_lack_is_no_reason_to_refuse(client: Client) -> None:
    sparse = {"alerts": [{"labels": None, "annotations": None, "silencedBy": ["x"]}], "novelty": {"a": [1]}}

    assert post(client, sparse).status_code == 200
    alert = Alert.objects.get()
    assert (alert.name, alert.status, alert.severity, len(alert.fingerprint)) == ("Alert", "firing", "warning", 16)


def test_alerts_without_fingerprints_are_told_apart_by_their_labels(client: Client) -> None:
    alerts = [{"labels": {"alertname": "Down", "instance": name}} for name in ("h1", "h2", "h1")]

    assert post(client, {"alerts": alerts}).status_code == 200
    assert sorted(Alert.objects.values_list("labels__instance", "count")) == [("h1", 2), ("h2", 1)]


def test_an_empty_group_is_taken(client: Client) -> None:
    assert json.loads(post(client, {**PAYLOAD, "alerts": []}).content) == {"received": 0}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b'{"alerts": [{"labels": {"a": "\xff"}}]}',
        b"[" * 100_000,
        b"null",
        [],
        {},
        {"alerts": {}},
        {"alerts": [1]},
        {"alerts": [{"labels": []}]},
        {"alerts": [{"startsAt": "yesterday"}]},
        {"alerts": [{"status": "burning"}]},
    ],
)
def test_a_bad_payload_is_explained_and_leaves_nothing(client: Client, body: Any) -> None:
    answer = post(client, body)

    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert json.loads(answer.content)["detail"].startswith("This is not an Alertmanager payload: ")
    assert not Alert.objects.exists()


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-08-22T08:24:38"])
def test_odd_times_are_taken(client: Client, time: str) -> None:
    alert = {**PAYLOAD["alerts"][0], "startsAt": time, "status": "resolved", "endsAt": time}

    assert post(client, {"alerts": [alert]}).status_code == 200
    assert Alert.objects.get().status == "resolved"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer schlüssel"}, 401),
        ({"Authorization": "Basic key of the settings"}, 401),
        ({"Authorization": "Bearer key for chat"}, 403),
    ],
)
def test_the_key_decides(client: Client, headers: dict[str, str], status: int) -> None:
    answer = client.post(HOOK, PAYLOAD, content_type="application/json", headers=headers)

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert not Alert.objects.exists()


def test_other_methods_are_refused(client: Client) -> None:
    answer = client.get(HOOK)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_a_huge_notification_is_refused(client: Client) -> None:
    answer = post(client, b" " * (hooks.MAX_BODY_BYTES + 1))

    assert answer.status_code == 413


def test_trouble_with_the_database_asks_for_the_notification_again(client: Client) -> None:
    def broken(*_: Any) -> Any:
        raise OperationalError("the database is away")

    with connection.execute_wrapper(broken):
        answer = post(client)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert not Alert.objects.exists()


def test_trouble_in_the_middle_leaves_nothing_half_written(client: Client) -> None:
    def broken(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and "storedevent" in sql:
            raise OperationalError("the disk is full")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(broken):
        answer = post(client)

    assert answer.status_code == 503
    assert not Alert.objects.exists()
    assert post(client).status_code == 200
