"""The page of alerts, the acknowledgement, and the count on every page."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from pytest_django import Settings

from notifications.alerts import services
from notifications.alerts.models import Alert
from notifications.events.selectors import history

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def ana(django_user_model: type[User]) -> User:
    return django_user_model.objects.create_user("ana")


def test_visitors_are_sent_to_log_in(client: Client) -> None:
    answer = client.get("/alerts/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "/accounts/login/?next=/alerts/")


def test_the_page_has_the_alerts_and_the_cursor_behind_them(client: Client, ana: User) -> None:
    services.publish_alert(name="Disk<Full>", severity="critical", summary="95 %")
    client.force_login(ana)

    answer = client.get("/alerts/")

    assert answer.status_code == 200
    state = answer.context["state"]
    assert [alert["name"] for alert in state["alerts"]] == ["Disk<Full>"]
    assert state["cursor"]["offset"] == 1
    page = answer.content.decode()
    assert "Disk\\u003CFull\\u003E" in page  # the state of the component
    assert "<b>Disk&lt;Full&gt;</b>" in page  # what is there before the script
    assert answer.context["hub_alerts_open"]["count"] == 1


def test_acknowledging_answers_with_the_alert_and_is_announced(client: Client, ana: User) -> None:
    alert = services.publish_alert(name="DiskFull")
    client.force_login(ana)

    answer = client.post(f"/alerts/{alert.pk}/acknowledge/")

    assert answer.status_code == 200
    assert answer.json()["acknowledged_by"] == "ana"
    last = history("alerts:all")[0][-1]
    assert (last.type, last.data) == ("alert.acknowledged", answer.json())


def test_a_visitor_is_told_that_they_are_signed_out(client: Client) -> None:
    alert = services.publish_alert(name="DiskFull")

    answer = client.post(f"/alerts/{alert.pk}/acknowledge/")

    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")
    assert Alert.objects.get().acknowledged_at is None


@pytest.mark.parametrize(("method", "path", "status"), [("post", "7", 404), ("get", "7", 405), ("post", "x", 404)])
def test_what_cannot_be_acknowledged(client: Client, ana: User, method: str, path: str, status: int) -> None:
    client.force_login(ana)

    assert getattr(client, method)(f"/alerts/{path}/acknowledge/").status_code == status


def test_a_forged_acknowledgement_is_refused(ana: User) -> None:
    alert = services.publish_alert(name="DiskFull")
    client = Client(enforce_csrf_checks=True)
    client.force_login(ana)

    assert client.post(f"/alerts/{alert.pk}/acknowledge/").status_code == 403
    assert Alert.objects.get().acknowledged_at is None


def test_the_admin_lists_alerts_and_acknowledges_them(admin_client: Client) -> None:
    alert = services.publish_alert(name="DiskFull")

    assert admin_client.get("/admin/hub_alerts/alert/").status_code == 200
    assert admin_client.get(f"/admin/hub_alerts/alert/{alert.pk}/change/").status_code == 200
    chosen = {"action": "acknowledge", "_selected_action": alert.pk}
    assert admin_client.post("/admin/hub_alerts/alert/", chosen).status_code == 302

    assert Alert.objects.get().acknowledged_by is not None
