"""The pages of a running hub in a real browser, used by two people."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.conftest import API_KEY
from tests.servers import PROJECT, Hub

Screenshot = Callable[[Page, str], Awaitable[None]]

PAGES = ["/", "/chat/", "/chat/lobby/", "/alerts/", "/tasks/", "/activity/", "/lobby/", "/accounts/login/"]
AXE = PROJECT / "notifications" / "web" / "node_modules" / "axe-core" / "axe.min.js"

pytestmark = pytest.mark.timeout(120)


async def post(hub: Hub, path: str, body: object, **headers: str) -> Any:
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY, **headers}) as client:
        answer = await client.post(f"{hub.url}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def alertmanager(*alerts: tuple[str, str, str, str]) -> dict[str, Any]:
    """A payload of Alertmanager for alerts of (fingerprint, status, name, severity)."""
    started = datetime.now(UTC) - timedelta(minutes=3)
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "status": "firing",
        "receiver": "hub",
        "alerts": [
            {
                "status": status,
                "labels": {"alertname": name, "severity": severity, "instance": "db-1:9100"},
                "annotations": {"summary": f"{name} on db-1", "runbook_url": "https://runbooks.example/x"},
                "startsAt": started.isoformat(),
                "endsAt": "0001-01-01T00:00:00Z" if status == "firing" else datetime.now(UTC).isoformat(),
                "generatorURL": "",
                "fingerprint": fingerprint,
            }
            for fingerprint, status, name, severity in alerts
        ],
    }


async def test_two_people_chat(open_page: OpenPage, screenshot: Screenshot) -> None:
    ana, bob = await open_page("ana", "/chat/planning/"), await open_page("bob", "/chat/planning/")
    await expect(ana.get_by_text("2 people here")).to_be_visible()

    for page, text in (
        (ana, "Shall we ship on Friday?"),
        (bob, "Monday. <b>Nobody</b> ships on Friday."),
        (ana, "Fair."),
    ):
        await page.get_by_placeholder("Message #planning").fill(text)
        await page.keyboard.press("Enter")
        for reader in (ana, bob):
            await expect(reader.get_by_text(text)).to_be_visible()
    await screenshot(bob, "chat")
    await bob.reload()

    message = bob.locator("hub-chat .message", has_text="Shall we ship")
    await expect(message.locator(".author")).to_have_text("ana")
    await expect(bob.locator("hub-chat .message")).to_have_count(3)


@pytest.mark.parametrize("room", ["the big room", "größe/✓", "a:b"])
async def test_the_name_of_a_room_is_free(open_page: OpenPage, room: str) -> None:
    ana, bob = [await open_page(name, f"/chat/{room}/") for name in ("ana", "bob")]

    await ana.get_by_role("textbox", name=re.compile("Message")).fill("found you")
    await ana.keyboard.press("Enter")

    await expect(bob.get_by_text("found you")).to_be_visible()


async def test_who_is_signed_out_is_sent_to_log_in(open_page: OpenPage, hub: Hub) -> None:
    page = await open_page(None, "/chat/planning/")
    assert page.url == f"{hub.url}/accounts/login/?next=/chat/planning/"

    await page.locator("input[name=username]").fill("ana")
    await page.locator("input[name=password]").fill(hub.PASSWORD)
    await page.keyboard.press("Enter")

    await expect(page).to_have_url(f"{hub.url}/chat/planning/")


async def test_the_plain_page_and_the_chat_are_one_room(open_page: OpenPage) -> None:
    plain, chat = await open_page("ana", "/lobby/"), await open_page("bob", "/chat/lobby/")
    await expect(plain.get_by_text("You are now connected")).to_be_visible()

    await chat.get_by_placeholder("Message #lobby").fill("from the kit")
    await chat.keyboard.press("Enter")
    await expect(plain.get_by_text("from the kit")).to_be_visible()
    await plain.locator("main input").fill("from ten lines")
    await plain.keyboard.press("Enter")

    await expect(chat.locator("hub-chat .message", has_text="from ten lines")).to_be_visible()


async def samples(page: Page, *, more_than: int) -> int:
    """How many values a chart holds, as soon as these are more than so many."""
    async with asyncio.timeout(20):
        while True:
            held: int = await page.evaluate("document.querySelector('hub-chart[value=cpu]')?.samples?.length ?? 0")
            if held > more_than:
                return held
            await page.evaluate("new Promise(requestAnimationFrame)")


async def test_the_charts_are_filled_and_move(open_page: OpenPage, screenshot: Screenshot) -> None:
    first = await open_page("ana", "/")
    before = await samples(first, more_than=2)

    after = await samples(first, more_than=before)
    second = await open_page("bob", "/")
    assert await samples(second, more_than=after) > after  # its past is there, and not only what came since

    await expect(first.locator("hub-connection")).to_have_text(re.compile("live"))
    await expect(first.locator("hub-chart").first.locator("canvas")).to_be_visible()
    await expect(first.locator("hub-chart").first.get_by_text("just now")).to_be_visible()
    await screenshot(first, "dashboard")


async def test_an_alert_appears_is_acknowledged_and_resolves(
    open_page: OpenPage, hub: Hub, screenshot: Screenshot
) -> None:
    ana, bob = await open_page("ana", "/alerts/"), await open_page("bob", "/alerts/")
    bearer = {"Authorization": f"Bearer {API_KEY}"}
    firing = alertmanager(("f1", "firing", "InstanceDown", "critical"), ("f2", "firing", "DiskFillingUp", "warning"))

    await post(hub, "/hooks/alertmanager", firing, **bearer)
    for page in (ana, bob):
        await expect(page.get_by_text("InstanceDown on db-1")).to_be_visible()
        await expect(page).to_have_title(re.compile(r"^\(2\) "))
    await screenshot(ana, "alerts")
    row = ana.locator("hub-alerts [part~=alert]", has_text="InstanceDown")
    await row.get_by_role("button", name="Acknowledge").click()

    acknowledged = bob.locator("hub-alerts [part~=alert]", has_text="InstanceDown")
    await expect(acknowledged).to_contain_text("ana")
    await expect(bob).to_have_title(re.compile(r"^\(1\) "))
    resolved = alertmanager(
        ("f1", "resolved", "InstanceDown", "critical"), ("f2", "resolved", "DiskFillingUp", "warning")
    )
    await post(hub, "/hooks/alertmanager", resolved, **bearer)
    await expect(bob).to_have_title(re.compile(r"^[^(]"))


FORGET_BROADCASTS = "from notifications.broadcasts.models import Broadcast; Broadcast.objects.all().delete()"


async def test_a_broadcast_reaches_open_pages_until_it_is_retracted(
    open_page: OpenPage, hub: Hub, screenshot: Screenshot
) -> None:
    text = "Maintenance tonight at ten"
    # Of an attempt before this one.
    hub.command("shell", "-v", "0", "-c", FORGET_BROADCASTS)
    bob, visitor = await open_page("bob", "/chat/"), await open_page(None, "/accounts/login/")
    admin = await open_page("admin", "/admin/hub_broadcasts/broadcast/add/")

    await admin.locator("textarea[name=text]").fill(text)
    await admin.get_by_role("button", name="Publish").click()
    for page in (bob, visitor):
        await expect(page.locator("hub-banners").get_by_text(text)).to_be_visible()
    await screenshot(bob, "broadcast")

    later = await open_page("ana", "/")
    await expect(later.locator("hub-banners").get_by_text(text)).to_be_visible()
    elsewhere = await open_page("bob", "/")
    await bob.get_by_role("button", name="Dismiss for good").click()
    await expect(elsewhere.locator("hub-banners").get_by_text(text)).to_be_hidden()
    await bob.reload()
    await expect(bob.locator("hub-connection")).to_have_text(re.compile("live"))
    await expect(bob.locator("hub-banners").get_by_text(text)).to_be_hidden()

    await admin.goto(f"{hub.url}/admin/hub_broadcasts/broadcast/")
    await admin.get_by_role("link", name=text).click()
    await admin.get_by_role("button", name="Retract").click()
    for page in (later, visitor):
        await expect(page.locator("hub-banners").get_by_text(text)).to_be_hidden()


async def test_a_task_shows_its_progress_and_survives_a_reload(
    open_page: OpenPage, hub: Hub, screenshot: Screenshot
) -> None:
    for number in range(3):
        await post(hub, "/api/publish", {"channel": "open:exported", "data": number})
    page, watching = await open_page("admin", "/tasks/"), await open_page("admin", "/tasks/")

    await page.get_by_label("Topic to export").fill("open:exported")
    await page.get_by_role("button", name="Export").click()
    for reader in (page, watching):
        row = reader.locator("hub-tasks li").first
        await expect(row).to_contain_text("done")
        await expect(row).to_contain_text("3 of 3")
    await page.get_by_role("button", name="Prune").click()
    await expect(page.locator("hub-tasks li", has_text="done")).to_have_count(2)
    await screenshot(page, "tasks")
    await page.reload()

    await expect(page.locator("hub-tasks li")).to_have_count(2)
    async with page.expect_download() as downloading:
        await page.get_by_role("link", name=re.compile("[Dd]ownload|[Rr]esult|[Ff]ile")).first.click()
    lines = (await (await downloading.value).path()).read_text().splitlines()
    assert len(lines) == 3


async def test_what_happens_to_users_is_seen_by_staff(open_page: OpenPage, hub: Hub, screenshot: Screenshot) -> None:
    page = await open_page("admin", "/activity/")
    await expect(page.locator("hub-feed")).to_contain_text("ana")

    hub.add_user("carla")
    await expect(page.locator("hub-feed")).to_contain_text("carla")
    await screenshot(page, "activity")

    refused = await open_page("bob", "/")
    assert (await refused.request.get(f"{hub.url}/activity/")).status == 403


async def test_a_message_to_one_person_reaches_all_their_pages(open_page: OpenPage, hub: Hub) -> None:
    pages = [await open_page("ana", "/"), await open_page("ana", "/chat/")]
    for page in pages:
        await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    publish = (
        "from django.contrib.auth.models import User; from notifications.events import publish, user_topic; "
        "publish(user_topic(User.objects.get(username='ana')), 'export.ready', {'title': 'Your export is ready'})"
    )

    hub.command("shell", "-v", "0", "-c", publish)

    for page in pages:
        await expect(page.locator("hub-toasts").get_by_text("Your export is ready")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
async def test_the_pages_are_accessible_and_fit(open_page: OpenPage, hub: Hub, scheme: str, width: int) -> None:
    page = await open_page("admin", "/", color_scheme=scheme, bypass_csp=True)
    await page.set_viewport_size({"width": width, "height": 800})
    problems = {}
    for path in PAGES[:-1]:
        await page.goto(f"{hub.url}{path}")
        await expect(page.locator("main")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
        if AXE.exists():
            await page.add_script_tag(path=AXE)
            found = await page.evaluate("axe.run()")
            problems[path] = [
                (violation["id"], node["html"][:200])
                for violation in found["violations"]
                for node in violation["nodes"]
            ]

    assert {path: found for path, found in problems.items() if found} == {}
