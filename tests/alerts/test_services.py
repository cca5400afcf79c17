"""What reports make of an alert's row, and the events that tell of it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone
from pytest_django import Settings

from notifications.alerts import alertmanager, selectors, services
from notifications.alerts.models import Alert
from notifications.events import Event, publish
from notifications.events.exceptions import InvalidEvent
from notifications.events.models import StoredEvent
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)

START = datetime(2026, 8, 22, 8, 24, 38, 326_000, tzinfo=UTC)
ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def payload(*alerts: dict[str, Any]) -> alertmanager.Payload:
    return alertmanager.Payload(
        group_key='{}:{alertname="InstanceDown"}',
        alerts=[alertmanager.PayloadAlert(**{**firing(), **alert}) for alert in alerts],
    )


def firing(**changes: Any) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {"alertname": "InstanceDown", "instance": "h1:9100", "severity": "critical"},
        "annotations": {"summary": "h1 is down", "runbook_url": "https://wiki.example/down"},
        "starts_at": START,
        "ends_at": ZERO_TIME,
        "generator_url": "http://prometheus.example/graph",
        "fingerprint": "f404ecabc8dd5cd7",
        **changes,
    }


def resolved(**changes: Any) -> dict[str, Any]:
    return firing(**{"status": "resolved", "ends_at": START + timedelta(minutes=3), **changes})


def events() -> list[tuple[str, dict[str, Any]]]:
    return [(event.type, event.data) for event in history("alerts:all", limit=None)[0]]


def event_types() -> list[str]:
    return [kind for kind, _ in events()]


def test_a_firing_alert_is_a_row_and_an_event() -> None:
    [alert] = services.receive_alertmanager(payload=payload(firing()))

    stored = Alert.objects.get()
    assert stored == alert
    assert (stored.source, stored.group_key) == ("alertmanager", '{}:{alertname="InstanceDown"}')
    [event] = history("alerts:all")[0]
    assert event.key == "f404ecabc8dd5cd7"
    assert event == Event(
        topic="alerts:all",
        type="alert.firing",
        key="f404ecabc8dd5cd7",
        data={
            "id": stored.pk,
            "fingerprint": "f404ecabc8dd5cd7",
            "source": "alertmanager",
            "status": "firing",
            "severity": "critical",
            "name": "InstanceDown",
            "summary": "h1 is down",
            "description": "",
            "labels": {"alertname": "InstanceDown", "instance": "h1:9100", "severity": "critical"},
            "annotations": {"summary": "h1 is down", "runbook_url": "https://wiki.example/down"},
            "starts_at": "2026-08-22T08:24:38.326000+00:00",
            "ends_at": None,
            "last_seen_at": stored.last_seen_at.isoformat(),
            "count": 1,
            "acknowledged_by": None,
            "acknowledged_at": None,
            "runbook_url": "https://wiki.example/down",
            "source_url": "http://prometheus.example/graph",
        },
    )


def test_a_repetition_is_counted_and_tells_nobody_again() -> None:
    services.receive_alertmanager(payload=payload(firing()))

    [alert] = services.receive_alertmanager(payload=payload(firing()))

    assert (alert.count, Alert.objects.count()) == (2, 1)
    assert event_types() == ["alert.firing"]


def test_a_repetition_that_says_something_new_changes_the_alert_on_open_pages() -> None:
    services.receive_alertmanager(payload=payload(firing()))

    services.receive_alertmanager(payload=payload(firing(annotations={"summary": "h1 and h2 are down"})))

    assert event_types() == ["alert.firing", "alert.changed"]
    assert events()[1][1]["summary"] == "h1 and h2 are down"
    assert events()[1][1]["count"] == 2


def test_resolving_ends_the_alert_once_however_often_it_is_reported() -> None:
    services.receive_alertmanager(payload=payload(firing()))

    for _ in range(2):
        [alert] = services.receive_alertmanager(payload=payload(resolved()))

    assert (alert.status, alert.ends_at, alert.count) == ("resolved", START + timedelta(minutes=3), 1)
    assert event_types() == ["alert.firing", "alert.resolved"]


def test_a_late_copy_of_the_firing_does_not_open_a_resolved_alert() -> None:
    services.receive_alertmanager(payload=payload(firing()))
    services.receive_alertmanager(payload=payload(resolved()))

    [alert] = services.receive_alertmanager(payload=payload(firing()))

    assert (alert.status, alert.count) == ("resolved", 1)
    assert event_types() == ["alert.firing", "alert.resolved"]


def test_the_same_start_long_after_the_end_is_firing_again() -> None:
    services.receive_alertmanager(payload=payload(firing()))
    services.receive_alertmanager(payload=payload(resolved()))
    Alert.objects.update(last_seen_at=timezone.now() - timedelta(minutes=6))

    [alert] = services.receive_alertmanager(payload=payload(firing()))

    assert (alert.status, alert.ends_at) == ("firing", None)
    assert event_types() == ["alert.firing", "alert.resolved", "alert.firing"]


def test_a_new_start_after_the_end_is_a_new_incident_that_nobody_has_acknowledged(
    django_user_model: type[User],
) -> None:
    user = django_user_model.objects.create_user("ana")
    [alert] = services.receive_alertmanager(payload=payload(firing()))
    services.receive_alertmanager(payload=payload(firing()))
    services.acknowledge(alert=alert, user=user)
    services.receive_alertmanager(payload=payload(resolved()))
    later = START + timedelta(hours=1)

    [alert] = services.receive_alertmanager(payload=payload(firing(starts_at=later)))

    assert (alert.status, alert.starts_at, alert.ends_at, alert.count) == ("firing", later, None, 1)
    assert (alert.acknowledged_by, alert.acknowledged_at) == (None, None)
    assert event_types() == ["alert.firing", "alert.acknowledged", "alert.resolved", "alert.firing"]
    assert [data["acknowledged_by"] for _, data in events()] == [None, "ana", "ana", None]


def test_the_end_of_an_earlier_incident_does_not_end_the_present_one() -> None:
    services.receive_alertmanager(payload=payload(firing(starts_at=START + timedelta(hours=1))))

    [alert] = services.receive_alertmanager(payload=payload(resolved()))

    assert alert.status == "firing"
    assert event_types() == ["alert.firing"]


def test_an_alert_that_is_first_heard_of_when_it_is_over_is_listed_as_resolved() -> None:
    [alert] = services.receive_alertmanager(payload=payload(resolved()))

    assert (alert.status, alert.starts_at, alert.count) == ("resolved", START, 1)
    assert event_types() == ["alert.resolved"]


def test_alerts_that_a_notification_leaves_out_are_not_touched() -> None:
    services.receive_alertmanager(payload=payload(firing(fingerprint="a"), firing(fingerprint="b")))

    services.receive_alertmanager(payload=payload(resolved(fingerprint="b")))

    assert dict(Alert.objects.values_list("fingerprint", "status")) == {"a": "firing", "b": "resolved"}


def test_a_notification_about_one_alert_twice_takes_both_reports_in_order() -> None:
    [first, second] = services.receive_alertmanager(payload=payload(firing(), resolved()))

    assert first == second
    assert event_types() == ["alert.firing", "alert.resolved"]


def test_a_notification_is_stored_and_announced_in_two_statements_an_alert(
    django_assert_max_num_queries: Any,
) -> None:
    group = [firing(fingerprint=f"{number:016x}") for number in range(25)]
    services.receive_alertmanager(payload=payload(firing()))  # the topic's first event makes its rows

    with django_assert_max_num_queries(2 * 25 + 20):
        services.receive_alertmanager(payload=payload(*group))

    assert event_types() == ["alert.firing"] * 26


def test_nothing_is_stored_or_announced_when_the_transaction_fails() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        services.publish_alert(name="DiskFull")
        1 / 0  # noqa: B018

    assert not Alert.objects.exists()
    assert events() == []


def test_an_unknown_status_is_refused_before_anything_is_written() -> None:
    with pytest.raises(alertmanager.InvalidPayload, match="firing or resolved"):
        services.receive_alertmanager(payload=payload(firing(), firing(status="burning")))

    assert not Alert.objects.exists()
    assert events() == []


def test_publish_alert_counts_the_same_alert_and_resolves_it() -> None:
    labels = {"host": "db1"}
    first = services.publish_alert(name="DiskFull", severity="critical", summary="95 %", labels=labels)
    services.publish_alert(name="DiskFull", severity="critical", summary="95 %", labels=labels)
    other = services.publish_alert(name="DiskFull", labels={"host": "db2"})

    last = services.publish_alert(
        name="DiskFull", severity="critical", summary="95 %", labels=labels, status="resolved"
    )

    assert first.pk == last.pk != other.pk
    assert (last.source, last.status, last.count) == ("hub", "resolved", 2)
    assert event_types() == ["alert.firing", "alert.firing", "alert.resolved"]


def test_publish_alert_fires_again_without_a_start_of_its_own() -> None:
    services.publish_alert(name="DiskFull", fingerprint="disk")
    services.publish_alert(name="DiskFull", fingerprint="disk", status="resolved")

    alert = services.publish_alert(name="DiskFull", fingerprint="disk")

    assert (alert.status, alert.count) == ("firing", 1)
    assert event_types() == ["alert.firing", "alert.resolved", "alert.firing"]


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "x", "status": "open"}, {"name": "x", "source": ""}])
def test_publish_alert_refuses(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"name|source|not a valid Alert.Status"):
        services.publish_alert(**wrong)


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        ("critical", "critical"),
        ("PAGE", "critical"),
        ("error", "critical"),
        ("warning", "warning"),
        ("info", "info"),
        ("notice", "info"),
        ("purple", "warning"),
        ("", "warning"),
    ],
)
def test_severities_of_other_systems_become_one_of_three(word: str, severity: str) -> None:
    assert services.publish_alert(name="x", severity=word).severity == severity


def test_only_web_addresses_become_links() -> None:
    links = {"runbook_url": "javascript:alert(1)", "source_url": "https://wiki.example/?q=1"}

    alert = services.publish_alert(name="x", **links)

    assert (alert.runbook_url, alert.source_url) == ("", "https://wiki.example/?q=1")


def test_text_that_a_database_refuses_is_cleaned() -> None:
    alert = services.publish_alert(name="a\0b", summary="c\0d", labels={"n\0": "v\0", "number": 3, "none": None})

    assert (alert.name, alert.summary, alert.labels) == ("ab", "cd", {"n": "v", "number": "3", "none": ""})


def test_an_alert_larger_than_an_event_may_be_is_stored_whole_and_announced_in_short() -> None:
    alert = services.publish_alert(
        name="Long", summary="short", labels={"host": "db1"}, annotations={"dump": "x" * 70_000}
    )

    assert Alert.objects.get(pk=alert.pk).annotations == {"dump": "x" * 70_000}
    [(_, data)] = events()
    assert (data["annotations"], data["summary"], data["labels"]) == ({}, "short", {"host": "db1"})


def test_the_first_acknowledgement_stands(django_user_model: type[User]) -> None:
    ana = django_user_model.objects.create_user("ana", first_name="Ana", last_name="Lima")
    bea = django_user_model.objects.create_user("bea")
    alert = services.publish_alert(name="DiskFull")

    services.acknowledge(alert=alert, user=ana)
    again = services.acknowledge(alert=alert, user=bea)

    assert again.acknowledged_by == ana
    assert event_types() == ["alert.firing", "alert.acknowledged"]
    event = history("alerts:all")[0][-1]
    assert event.sender is not None
    assert (event.sender.user, event.sender.info) == (str(ana.pk), {"name": "Ana Lima"})
    assert event.data["acknowledged_by"] == "ana"
    assert event.data["acknowledged_at"] == again.acknowledged_at.isoformat()  # type: ignore[union-attr]


def test_what_is_over_is_not_acknowledged(django_user_model: type[User]) -> None:
    user = django_user_model.objects.create_user("ana")
    alert = services.publish_alert(name="DiskFull", status="resolved")

    assert services.acknowledge(alert=alert, user=user).acknowledged_at is None
    assert event_types() == ["alert.resolved"]


def test_an_alert_stays_acknowledged_when_the_account_is_deleted(django_user_model: type[User]) -> None:
    user = django_user_model.objects.create_user("ana")
    services.acknowledge(alert=services.publish_alert(name="DiskFull"), user=user)

    user.delete()

    assert selectors.alert_state(Alert.objects.get())["acknowledged_by"] == "a former user"
    assert selectors.firing_unacknowledged_count() == 0


def test_many_at_once_are_one_row_and_one_firing_event() -> None:
    errors: list[BaseException] = []

    def report() -> None:
        try:
            services.receive_alertmanager(payload=payload(firing(fingerprint="b"), firing(fingerprint="a")))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=report) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert list(Alert.objects.order_by("fingerprint").values_list("fingerprint", "count")) == [("a", 6), ("b", 6)]
    assert event_types() == ["alert.firing", "alert.firing"]
    assert sorted(StoredEvent.objects.values_list("offset", flat=True)) == [1, 2]


def test_a_text_that_no_log_can_hold_is_cleaned() -> None:
    alert = services.publish_alert(name="TaskFailed", summary="OSError: caf\udce9\0")

    assert alert.summary == "OSError: caf?"
    assert history("alerts:all")[0][-1].data["summary"] == "OSError: caf?"


def test_what_is_no_alert_is_refused() -> None:
    with pytest.raises(InvalidEvent, match=r"alert\.firing"):
        publish("alerts:all", "alert.firing", {"name": "DiskFull", "severity": "critical"})
