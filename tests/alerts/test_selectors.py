"""What the page of alerts and the count on every page begin with."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import Settings

from notifications.alerts import selectors, services
from notifications.alerts.models import Alert

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


def test_open_alerts_come_first_the_worst_first_and_resolved_ones_last(django_user_model: type[User]) -> None:
    user = django_user_model.objects.create_user("ana")
    for name, severity in (("note", "info"), ("slow", "warning"), ("down", "critical"), ("taken", "critical")):
        services.publish_alert(name=name, severity=severity)
    services.acknowledge(alert=Alert.objects.get(name="taken"), user=user)
    services.publish_alert(name="over", severity="critical", status="resolved")
    services.publish_alert(name="long over", status="resolved")
    Alert.objects.filter(name="long over").update(last_seen_at=timezone.now() - timedelta(days=8))

    assert [alert.name for alert in selectors.listed_alerts()] == ["down", "slow", "note", "taken", "over"]
    assert selectors.firing_unacknowledged_count() == 3


def test_the_state_of_the_page_ends_where_its_cursor_stands() -> None:
    alert = services.publish_alert(name="down")

    state = selectors.alerts_page_state()

    assert state["alerts"] == [selectors.alert_state(Alert.objects.get(pk=alert.pk))]
    assert state["cursor"]["offset"] == 1


def test_the_count_names_the_alerts_that_it_counts() -> None:
    first, second = (services.publish_alert(name=name) for name in ("one", "two"))
    services.publish_alert(name="over", status="resolved")

    state = selectors.alert_count_state()

    assert (state["count"], state["ids"], state["cursor"]["offset"]) == (2, [second.pk, first.pk], 3)


def test_the_count_goes_beyond_the_ids_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "COUNTED_IDS", 2)
    for name in ("one", "two", "three"):
        services.publish_alert(name=name)

    counted = selectors.firing_unacknowledged()

    assert (counted.total, len(counted.ids)) == (3, 2)


def test_firing_alerts_beyond_those_that_are_listed_are_counted() -> None:
    now = timezone.now()
    Alert.objects.bulk_create(
        Alert(source="test", fingerprint=str(number), name="Many", status="firing", starts_at=now, last_seen_at=now)
        for number in range(selectors.OPEN_ALERTS + 8)
    )

    state = selectors.alerts_page_state()

    assert (len(state["alerts"]), state["unlisted"]) == (selectors.OPEN_ALERTS, 8)
