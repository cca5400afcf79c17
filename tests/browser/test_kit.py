"""What the browser kit makes of events, clocks and tabs that are not as they should be."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_pages import alertmanager, post
from tests.conftest import API_KEY
from tests.servers import Hub

pytestmark = pytest.mark.timeout(60)

#: Hands the page an event as if the server had sent it: the server refuses some of what these tests are about.
RECEIVE = """async ([topic, type, data]) => {
    const { hub } = await import("hub");
    hub.topic(topic).published({ data, tags: { id: "", type } });
}"""


async def receive(page: Page, topic: str, event_type: str, data: object) -> None:
    await page.evaluate(RECEIVE, [topic, event_type, data])


async def publish(hub: Hub, channel: str, *bodies: dict[str, Any]) -> None:
    """Publish one after the other, on one connection."""
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        for body in bodies:
            answer = await client.post(f"{hub.url}/api/publish", json={"channel": channel, **body})
            assert answer.status_code == 200, answer.text


async def live(page: Page) -> Page:
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    return page


def an_alert(number: int, status: str = "firing") -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "id": number,
        "name": f"Alert{number}",
        "status": status,
        "severity": "info",
        "labels": {},
        "starts_at": now.isoformat(),
        "last_seen_at": now.isoformat(),
        "ends_at": None if status == "firing" else (now + timedelta(seconds=number)).isoformat(),
    }


def a_task(number: int, state: str) -> dict[str, Any]:
    at = (datetime.now(UTC) + timedelta(seconds=number)).isoformat()
    return {"id": f"t{number}", "name": f"task{number}", "state": state, "done": 0, "started_at": at, "updated_at": at}


async def test_an_alert_that_is_not_whole_is_ignored(open_page: OpenPage) -> None:
    page = await live(await open_page("ana", "/alerts/"))

    for data in (None, 7, {"name": "DiskFull", "severity": "critical"}, {**an_alert(9_000), "labels": None}):
        await receive(page, "alerts:all", "alert.firing", data)
    await receive(page, "alerts:all", "alert.firing", an_alert(9_001))

    await expect(page.locator("hub-alerts").get_by_text("Alert9001")).to_be_visible()
    await expect(page.locator("hub-alerts").get_by_text("Alert9000")).to_have_count(0)
    await expect(page.locator("hub-alerts hub-copy")).to_have_count(0)


async def test_a_task_that_is_not_whole_is_ignored(open_page: OpenPage) -> None:
    page = await live(await open_page("admin", "/tasks/"))

    for data in (None, {"done": 1, "total": 2}, {"id": "t1", "name": "lost"}):
        await receive(page, "tasks:all", "task.progress", data)
    await receive(page, "tasks:all", "task.progress", a_task(1, "progress"))

    await expect(page.locator("hub-tasks").get_by_text("task1")).to_be_visible()
    await expect(page.locator("hub-tasks").get_by_text("lost")).to_have_count(0)


async def test_tasks_that_were_printed_without_a_position_are_loaded_again(open_page: OpenPage) -> None:
    page = await live(await open_page("admin", "/tasks/"))
    state = {"tasks": [a_task(1, "progress") | {"name": "over since"}], "cursor": None}
    printed = f"document.querySelector('hub-tasks script').textContent = {json.dumps(json.dumps(state))};"

    async def blind(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, body=printed + await answer.text())

    await page.route("**/hub.js", blind)
    async with page.expect_request(lambda request: request.resource_type == "fetch" and "/tasks/" in request.url):
        await page.reload()

    await live(page)
    await expect(page.locator("hub-tasks").get_by_text("over since")).to_have_count(0)


async def test_a_page_does_not_grow_with_what_is_over(open_page: OpenPage) -> None:
    alerts, tasks = await live(await open_page("ana", "/alerts/")), await live(await open_page("admin", "/tasks/"))

    for number in range(60):
        await receive(alerts, "alerts:all", "alert.resolved", an_alert(8_000 + number, "resolved"))
    for number in range(110):
        await receive(tasks, "tasks:all", "task.succeeded", a_task(8_000 + number, "succeeded"))
    await receive(tasks, "tasks:all", "task.progress", a_task(1, "progress"))

    resolved = alerts.locator("hub-alerts .row.resolved")
    await expect(resolved).to_have_count(50)
    await expect(resolved.first).to_contain_text("Alert8059")
    await alerts.get_by_label("Filter alerts").fill("matched by none")
    held = await alerts.get_by_text(re.compile(r"None of \d+ alerts")).inner_text()
    assert 50 <= int(held.split()[2]) < 60
    await expect(tasks.locator("hub-tasks li")).to_have_count(100)
    await expect(tasks.locator("hub-tasks li").first).to_contain_text("task1")


async def test_a_room_and_the_toasts_do_not_grow_without_end(open_page: OpenPage) -> None:
    page = await live(await open_page("ana", "/chat/kit-grows/"))

    await page.evaluate("""async () => {
        const { hub } = await import("hub");
        for (let offset = 1; offset <= 510; offset += 1) {
            const tags = { id: `m${offset}`, type: "chat.message" };
            hub.topic("chat:kit-grows").published({ data: { message: `message ${offset}` }, tags, offset });
        }
        for (let index = 0; index < 30; index += 1) {
            const data = { title: `note ${index}`, severity: index ? "info" : "critical" };
            hub.personal.published({ data, tags: { id: `n${index}`, type: "note" } });
        }
    }""")

    messages = page.locator("hub-chat .message")
    await expect(messages).to_have_count(500)
    await expect(messages.first).to_contain_text("message 11")
    await expect(page.get_by_role("button", name="Earlier messages")).to_be_visible()
    await expect(page.locator("hub-toasts")).to_contain_text("17 earlier ones")


async def test_a_page_can_act_after_a_login_in_another_tab(open_page: OpenPage, hub: Hub) -> None:
    first = await live(await open_page("ana", "/alerts/"))
    second = await first.context.new_page()
    await first.context.clear_cookies(name="sessionid")
    await second.goto(f"{hub.url}/accounts/login/")
    await second.locator("input[name=username]").fill("ana")
    await second.locator("input[name=password]").fill(hub.PASSWORD)
    await second.keyboard.press("Enter")
    await expect(second).not_to_have_url(re.compile("login"))
    firing = alertmanager(("kit-1", "firing", "TakenAfterALogin", "warning"))
    await post(hub, "/hooks/alertmanager", firing, Authorization=f"Bearer {API_KEY}")

    row = first.locator("hub-alerts [part~=alert]", has_text="TakenAfterALogin")
    await row.get_by_role("button", name="Acknowledge").click()

    taken = second.locator("hub-alerts [part~=alert]", has_text="TakenAfterALogin")
    await second.goto(f"{hub.url}/alerts/")
    await expect(row).to_contain_text("acknowledged by ana")
    await expect(taken).to_contain_text("acknowledged by ana")


async def test_earlier_messages_are_read_past_events_that_are_none(open_page: OpenPage, hub: Hub) -> None:
    said: list[dict[str, Any]] = [{"data": {"message": f"message {number}"}} for number in range(130)]
    deploy: dict[str, Any] = {"data": None, "tags": {"type": "deploy.done"}}
    # A whole page of them, and one among the newest.
    await publish(hub, "chat:kit", *said[:20], *[deploy] * 60, *said[20:80], deploy, *said[80:])
    page = await live(await open_page("ana", "/chat/kit/"))
    messages = page.locator("hub-chat .message")
    await expect(messages.last).to_have_text(re.compile("message 129"))
    before = await messages.count()
    assert before < 130

    earlier = page.get_by_role("button", name="Earlier messages")
    while before < 130:
        await earlier.click()
        await expect(messages).not_to_have_count(before)
        before = await messages.count()

    await expect(messages).to_have_count(130)
    await expect(messages.first).to_have_text(re.compile("message 0"))
    await expect(earlier).to_have_count(0)


@pytest.mark.parametrize("minutes", [-3, 3])
async def test_a_broadcast_shows_where_the_clock_is_wrong(open_page: OpenPage, hub: Hub, minutes: int) -> None:
    page = await open_page("bob", "/chat/")
    await page.clock.install(time=datetime.now(UTC) + timedelta(minutes=minutes))
    await page.reload()
    await live(page)
    text = f"Back in a minute, whatever your clock says ({minutes})"
    code = (
        "from datetime import timedelta; from django.utils import timezone; "
        "from django.contrib.auth.models import User; "
        "from notifications.broadcasts.models import Broadcast; "
        "from notifications.broadcasts.services import publish_broadcast; "
        f"publish_broadcast(broadcast=Broadcast(text={text!r}, ends_at=timezone.now() + timedelta(minutes=2)), "
        "by=User.objects.get(username='admin'))"
    )

    hub.command("shell", "-v", "0", "-c", code)

    await expect(page.locator("hub-banners").get_by_text(text)).to_be_visible()
    if minutes < 0:
        await page.reload()
        await live(page)
        await expect(page.locator("hub-banners").get_by_text(text)).to_be_visible()
    hub.command(
        "shell",
        "-v",
        "0",
        "-c",
        "from notifications.broadcasts.models import Broadcast; "
        "from notifications.broadcasts.services import retract_broadcast; "
        f"retract_broadcast(broadcast=Broadcast.objects.get(text={text!r}))",
    )
    await expect(page.locator("hub-banners").get_by_text(text)).to_be_hidden()


FOLLOW = """async ([name, since]) => {
    const { hub } = await import("hub");
    const topic = hub.topic(name);
    const seen = (window.seen = []);
    await new Promise((live) => topic.follow({ change: () => topic.state === "live" && live() }));
    topic.follow({ since, event: (event) => seen.push(event.data), reset: () => void seen.push("reset") });
}"""


async def test_a_follower_that_cannot_be_caught_up_loads_its_state_and_goes_on(open_page: OpenPage, hub: Hub) -> None:
    page = await live(await open_page("ana", "/chat/"))
    await publish(hub, "open:kit", *({"data": number} for number in range(120)))  # more than it keeps
    position = (await post(hub, "/api/history", {"channel": "open:kit", "limit": 0}))["result"]

    await page.evaluate(FOLLOW, ["open:kit", {"offset": 1, "epoch": position["epoch"]}])
    await page.wait_for_function("window.seen.includes('reset')")
    await post(hub, "/api/publish", {"channel": "open:kit", "data": "later"})

    await page.wait_for_function("window.seen.includes('later')")
