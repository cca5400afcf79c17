"""What a running hub notes."""

from __future__ import annotations

import json

import httpx

from tests.conftest import API_KEY
from tests.servers import Hub

PRINT_NEWEST = """
import json
from notifications.audit.selectors import newest
entry = newest(limit=1)[0]
print(json.dumps([entry.action, entry.actor_name, entry.address, entry.subject]))
"""


def test_an_acknowledgement_is_noted_with_the_address_that_connected_and_not_with_the_one_that_is_claimed(
    hub: Hub,
) -> None:
    alert = {"status": "firing", "labels": {"alertname": "Audited"}, "fingerprint": "audited"}
    with httpx.Client(base_url=hub.url) as client:
        client.post("/hooks/alertmanager", json={"alerts": [alert]}, headers={"Authorization": f"Bearer {API_KEY}"})
        client.cookies.set("sessionid", hub.sign_in("ana"))
        client.get("/accounts/login/", follow_redirects=True)
        headers = {"X-CSRFToken": client.cookies["csrftoken"], "X-Forwarded-For": "6.6.6.6", "Referer": hub.url}

        page = client.get("/alerts/").text
        ids = [found["id"] for found in printed_alerts(page) if found["name"] == "Audited"]
        answer = client.post(f"/alerts/{ids[0]}/acknowledge/", headers=headers)

    assert answer.status_code == 200
    assert json.loads(hub.command("shell", "-v", "0", "-c", PRINT_NEWEST)) == [
        "alert.acknowledged",
        "ana",
        "127.0.0.1",
        "Audited (warning, firing)",
    ]


def printed_alerts(page: str) -> list[dict[str, object]]:
    """The alerts in the state that the page prints for its component."""
    state = page.partition('<hub-alerts topic="alerts:all"><script type="application/json">')[2].partition("</script>")[
        0
    ]
    alerts: list[dict[str, object]] = json.loads(state)["alerts"]
    return alerts
