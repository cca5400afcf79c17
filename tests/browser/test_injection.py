"""What people and programs write is shown as they wrote it, and never run: tried on every page that shows it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.conftest import API_KEY, OPEN_TOPICS
from tests.servers import Hub

pytestmark = pytest.mark.timeout(180)

RUN = "window.injected=1;alert(1)"
_TEXTS = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<!--<script>{RUN}//",
    f'"><img src=x onerror="{RUN}">',
    f"' autofocus onfocus='{RUN}' x='",
    f"<svg/onload={RUN}>",
    f'<svg><a xlink:href="javascript:{RUN}"><text y="20">x</text></a></svg>',
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f'<a href="javascript:{RUN}">here</a> javascript:{RUN} data:text/html,<script>{RUN}</script>',
    f"</textarea></title></style></template><img src=x onerror={RUN}>",
    "{{ 7|add:7 }}{% csrf_token %}${7*7}#{7*7}{{constructor.constructor('alert(1)')()}}",
    f"a\u2028{RUN}\u2029b\\u003cscript\\u003e",
    f"<hub-chat></hub-chat><style>*{{display:none}}</style><base href=//x.example><img src=x onerror={RUN}>",
]
# Each with an end of its own, so that none is a part of another one.
TEXTS = [f"{text} {number}." for number, text in enumerate(_TEXTS)]
LINKS = [
    f"javascript:{RUN}",
    f" JaVaScRiPt:{RUN}",
    f"java\nscript:{RUN}",
    f"\x01javascript:{RUN}",
    f"data:text/html,<script>parent.{RUN}</script>",
    f"vbscript:{RUN}",
    "file:///etc/passwd",
    "blob:https://x.example/1",
    f'https://x.example/"onmouseover="{RUN}',
]
# What lit, which renders the components, takes for a template of its own when it is made by the page's script.
TEMPLATE = {"_$litType$": 1, "strings": [f"<img src=x onerror={RUN}>"], "values": []}
MOMENT = "2026-01-01T00:00:00+00:00"

# Everything in the document and in the shadow trees of its components.
ELEMENTS = """() => {
    const found = [];
    const walk = (root) => {
        for (const element of root.querySelectorAll("*")) {
            found.push(element);
            if (element.shadowRoot) walk(element.shadowRoot);
        }
    };
    walk(document);
    const names = ["href", "src", "action", "formaction", "xlink:href", "srcdoc", "data"];
    const valued = (element) => names.filter((name) => element.hasAttribute(name));
    const addresses = found.flatMap((element) => valued(element).map((name) => element.getAttribute(name)));
    const handled = (element) => element.getAttributeNames().some((name) => name.startsWith("on"));
    return {
        injected: window.injected ?? null,
        violations: window.violations,
        schemes: [...new Set(addresses.map((address) => new URL(address, location.href).protocol))].sort(),
        handlers: found.filter(handled).map((element) => element.outerHTML),
        intruders: found.filter((it) => it.matches("iframe, object, embed, base, img")).map((it) => it.outerHTML),
    };
}"""

Publish = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of its own: what is written here would be shown on the pages of other tests."""
    running = Hub(tmp_path_factory.mktemp("hub"), HUB_TOPICS=OPEN_TOPICS, HUB_API_KEYS=API_KEY)
    running.add_user("ana")
    yield running
    running.stop()


@pytest.fixture
async def watched(open_page: OpenPage) -> AsyncIterator[OpenPage]:
    """Opens pages as `open_page` does; at the end none of them has run or contains what was not the hub's."""
    pages: list[Page] = []
    dialogs: list[str] = []

    def opened(dialog: Any) -> Awaitable[None]:
        dialogs.append(dialog.message)
        closed: Awaitable[None] = dialog.dismiss()
        return closed

    async def open_watched(username: str | None, path: str, **options: object) -> Page:
        page = await open_page(username, "/favicon.ico", **options)
        page.on("dialog", opened)
        await page.add_init_script(
            "window.violations = []; addEventListener('securitypolicyviolation', (event) =>"
            " window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"
        )
        await page.goto(page.url.partition("/favicon.ico")[0].partition("/static/")[0] + path)
        pages.append(page)
        return page

    yield open_watched
    for page in pages:
        await assert_harmless(page)
    assert dialogs == []


async def assert_harmless(page: Page) -> None:
    seen = await page.evaluate(ELEMENTS)
    assert set(seen.pop("schemes")) <= {"http:", "https:", "data:"}  # the favicon is data
    assert seen == {"injected": None, "violations": [], "handlers": [], "intruders": []}
    links = await page.locator("a").evaluate_all("links => links.map((link) => link.protocol)")
    assert set(links) <= {"http:", "https:"}


@pytest.fixture
async def publish(hub: Hub) -> AsyncIterator[Publish]:
    """Publishes over HTTP, as another program does."""
    async with httpx.AsyncClient(base_url=hub.url, headers={"X-API-Key": API_KEY}) as client:

        async def post(channel: str, data: object, type: str = "message") -> None:
            answer = await client.post("/api/publish", json={"channel": channel, "data": data, "tags": {"type": type}})
            assert answer.json().get("error") is None, answer.text

        yield post


def shown(text: str) -> str:
    """A text as a page shows it, with spaces for what is white space."""
    return " ".join(text.split())


async def expect_texts(items: Locator, texts: list[str]) -> None:
    """Each of the texts stands, whole, in an item of its own."""
    for text in texts:
        await expect(items.filter(has_text=re.compile(re.escape(shown(text)).replace(r"\ ", r"\s+")))).to_have_count(1)


async def test_messages(watched: OpenPage) -> None:
    ana, reader = await watched("ana", "/chat/lobby/"), await watched("admin", "/chat/lobby/")
    plain = await watched("ana", "/lobby/")
    await expect(plain.get_by_text("You are now connected")).to_be_visible()
    texts = TEXTS + [f"{link} {number}!" for number, link in enumerate(LINKS)]

    for text in texts:
        await ana.get_by_placeholder("Message #lobby").fill(text)
        await ana.keyboard.press("Enter")
    await expect_texts(reader.locator("hub-chat .message .text"), texts)
    await expect_texts(plain.locator("#log p"), texts)
    await reader.reload()

    await expect_texts(reader.locator("hub-chat .message .text"), texts)
    links = reader.locator("hub-chat .message .text a")
    assert await addresses_of(links) == ["https://x.example/1", "https://x.example/"]


async def addresses_of(links: Locator) -> list[str]:
    """Where links lead, as it was written."""
    addresses: list[str] = await links.evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    return addresses


async def test_names_of_rooms(watched: OpenPage, hub: Hub) -> None:
    page = await watched("ana", "/chat/")

    for room in (shown(text) for text in TEXTS if len(text) < 100):
        await page.goto(f"{hub.url}/chat/{quote(room, safe='')}/")
        await expect(page.locator("hub-chat h2")).to_have_text(f"#{room}")
        await expect(page).to_have_title(re.compile(re.escape(f"#{room} · Hub")))
        await page.get_by_role("textbox", name="Message").fill("found you")
        await page.keyboard.press("Enter")
        await expect(page.locator("hub-chat .message:not(.sending-draft) .text")).to_contain_text("found you")
        await assert_harmless(page)
        await page.goto(f"{hub.url}/chat/")
        await page.locator(".rooms a").get_by_text(f"#{room}", exact=True).click()
        await expect(page.locator("hub-chat h2")).to_have_text(f"#{room}")


@pytest.mark.parametrize(
    "name", [f'"><img src=x onerror="{RUN}">', f"</script><script>{RUN}</script>", "{{7|add:7}}'`${1}"]
)
async def test_names_of_users(watched: OpenPage, hub: Hub, name: str) -> None:
    hub.add_user(name, staff=True)
    page, admin = await watched(name, "/chat/names/"), await watched("admin", "/chat/names/")
    await expect(page.locator(".menu summary .name")).to_have_text(name)

    await page.get_by_role("textbox", name="Message").fill("hello")
    await page.keyboard.press("Enter")

    await expect(admin.locator("hub-chat .message .author").get_by_text(name, exact=True)).to_be_visible()
    await expect(admin.locator("hub-presence").get_by_text(name, exact=True)).to_be_visible()
    await admin.goto(f"{hub.url}/activity/")
    await expect(admin.locator("hub-feed dd").get_by_text(name, exact=True).first).to_be_visible()
    await admin.goto(f"{hub.url}/admin/auth/user/")
    await expect(admin.get_by_role("link", name=name, exact=True)).to_be_visible()
    await assert_no_dialog_and_nothing_run(admin)
    await admin.goto(f"{hub.url}/")


async def assert_no_dialog_and_nothing_run(page: Page) -> None:
    """For pages of the admin's theme, which has images and styles of its own."""
    assert await page.evaluate("[window.injected ?? null, window.violations]") == [None, []]


async def test_a_refused_name_on_the_login_page(watched: OpenPage) -> None:
    page = await watched(None, f"/accounts/login/?next={quote(TEXTS[3])}")

    await page.locator("input[name=username]").fill(TEXTS[3])
    await page.locator("input[name=password]").fill("wrong")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("alert").first).to_be_visible()
    assert await page.locator("input[name=username]").input_value() == TEXTS[3]
    assert await page.locator("input[name=next]").input_value() == TEXTS[3]


async def test_no_login_leads_to_a_script(watched: OpenPage, hub: Hub) -> None:
    page = await watched(None, f"/accounts/login/?next={quote(LINKS[0])}")

    await page.locator("input[name=username]").fill("ana")
    await page.locator("input[name=password]").fill(hub.PASSWORD)
    await page.keyboard.press("Enter")

    await expect(page).to_have_url(f"{hub.url}/")


async def test_broadcasts(watched: OpenPage, hub: Hub) -> None:
    open_before, visitor = await watched("ana", "/chat/"), await watched(None, "/accounts/login/")
    admin = await watched("admin", "/admin/hub_broadcasts/broadcast/add/")
    text = "\n".join(TEXTS + LINKS[:2] + LINKS[4:])

    await admin.locator("textarea[name=text]").fill(text)
    await admin.get_by_role("button", name="Publish").click()
    await expect(admin).to_have_url(f"{hub.url}/admin/hub_broadcasts/broadcast/")
    await assert_no_dialog_and_nothing_run(admin)
    await admin.goto(f"{hub.url}/alerts/")
    await visitor.reload()

    for page in (open_before, visitor, admin):
        banner = page.locator("hub-banners .text")
        await expect(banner).to_have_text(shown(text))
        assert await addresses_of(banner.locator("a")) == ["https://x.example/1", "https://x.example/"]
    source = await (await open_before.request.get(f"{hub.url}/chat/")).text()
    assert RUN in source
    assert "<script>window" not in source


async def test_a_broadcast_of_a_program_breaks_no_page(watched: OpenPage, publish: Publish) -> None:
    page = await watched("ana", "/chat/")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    whole = {
        "id": 901,
        "text": "whole",
        "severity": "critical",
        "starts_at": MOMENT,
        "ends_at": None,
        "dismissible": True,
    }

    for changed in (
        {"text": TEMPLATE},
        {"text": 7},
        {"id": "../../accounts/logout/?"},
        {"starts_at": 7},
        {"ends_at": {}},
    ):
        await publish("broadcasts:all", whole | {"id": 900} | changed, "broadcast.published")
    for data in (None, [], "x", {"id": TEMPLATE}):
        await publish("broadcasts:all", data, "broadcast.retracted")
    await publish("broadcasts:all", whole | {"severity": f"x {TEXTS[3]}"}, "broadcast.published")
    await publish("broadcasts:all", whole | {"id": 902, "text": TEXTS[3]}, "broadcast.published")

    await expect(page.locator("hub-banners .text").get_by_text(TEXTS[3])).to_be_visible()
    await expect(page.locator("hub-banners .text").get_by_text("{")).to_have_count(0)
    for number in (901, 902):
        await publish("broadcasts:all", {"id": number}, "broadcast.retracted")


async def test_alerts_of_alertmanager(watched: OpenPage, hub: Hub) -> None:
    page = await watched("ana", "/alerts/")
    texts = [shown(text) for text in TEXTS]
    alerts = [
        {
            "status": "firing",
            "fingerprint": text,
            "labels": {"alertname": text, "severity": text, text: text},
            "annotations": {"summary": f"{text} {LINKS[0]}", "description": text, "runbook_url": link},
            "generatorURL": link,
        }
        for text, link in zip(texts, LINKS * 2, strict=False)
    ]
    async with httpx.AsyncClient(base_url=hub.url, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        answer = await client.post("/hooks/alertmanager", json={"groupKey": TEXTS[0], "alerts": alerts})
        assert answer.json() == {"received": len(alerts)}

    for _ in range(2):  # as events, and then as what the page was made with
        await expect_texts(page.locator("hub-alerts .name"), texts)
        await expect_texts(page.locator("hub-alerts .chip"), texts)
        await expect_texts(page.locator("hub-alerts .summary"), texts)
        links = page.locator("hub-alerts .links a")
        assert set(await links.evaluate_all("links => links.map((link) => link.protocol)")) == {"https:"}
        await page.reload()
    admin = await watched("admin", "/admin/hub_alerts/alert/")
    await expect(admin.get_by_text(texts[0]).first).to_be_visible()
    await admin.get_by_role("link", name=texts[3], exact=True).first.click()
    await expect(admin.get_by_text(texts[3]).first).to_be_visible()
    await assert_no_dialog_and_nothing_run(admin)
    await admin.goto(f"{hub.url}/")


async def test_alerts_of_a_program(watched: OpenPage, publish: Publish) -> None:
    page = await watched("ana", "/alerts/")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    alert: dict[str, Any] = {"status": "firing", "severity": "critical", "starts_at": MOMENT, "last_seen_at": MOMENT}

    for number, link in enumerate(LINKS[:-1]):
        about = {"id": 900 + number, "name": f"Link{number}", "fingerprint": f"l{number}", "labels": {"x": TEMPLATE}}
        hostile = {"runbook_url": link, "source_url": link, "acknowledged_by": TEMPLATE, "summary": TEMPLATE}
        await publish("alerts:all", alert | about | hostile | {"count": 1}, "alert.odd")
    last = {"id": 990, "name": "The last", "fingerprint": "l", "labels": {}, "runbook_url": "https://x.example/"}
    await publish("alerts:all", alert | last | {"count": 1}, "alert.firing")

    row = page.locator("hub-alerts .row", has=page.get_by_text("The last"))
    await expect(row.locator("a")).to_have_attribute("href", "https://x.example/")
    await expect(page.locator("hub-alerts .row").filter(has_text="Link0")).to_contain_text("onerror")
    for number in range(len(LINKS) - 1):
        hostile_row = page.locator("hub-alerts .row").filter(has_text=f"Link{number}")
        await expect(hostile_row.locator("a")).to_have_count(0)


async def test_notes(watched: OpenPage, publish: Publish) -> None:
    page = await watched("ana", "/")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    user = await page.evaluate("JSON.parse(document.querySelector('#hub-config').textContent).user.id")
    texts = [shown(text) for text in TEXTS]

    for text, link in zip(texts, LINKS * 2, strict=False):
        note = {"title": text, "text": f"{text} {link}", "url": link, "severity": text}
        await publish(f"#{user}", note, "note")
    await publish(f"#{user}", {"title": TEMPLATE, "text": TEMPLATE, "url": TEMPLATE, "severity": TEMPLATE}, "note.odd")
    await publish(f"#{user}", None, "broadcast.dismissed")
    await publish(f"#{user}", {"title": "The last", "url": LINKS[0], "severity": "critical"}, "note")

    toast = page.locator("hub-toasts .toast", has_text="The last")
    await expect(toast).to_be_visible()
    await expect(toast.locator("a")).to_have_count(0)
    await assert_harmless(page)
    await page.get_by_role("button", name=re.compile("^Notifications")).click()
    notes = page.locator("hub-bell li")
    await expect(notes).to_have_count(len(TEXTS) + 2)
    await expect_texts(notes, texts)


async def test_events_of_any_topic(watched: OpenPage, publish: Publish) -> None:
    page = await watched("admin", "/activity/")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))

    for text in TEXTS:
        await publish("activity:staff", {text: text, "more": [text, TEMPLATE]} | {str(n): text for n in range(9)})
        await publish("activity:staff", TEMPLATE)
    await publish("activity:staff", "The last")

    await expect(page.locator("hub-feed dd").get_by_text("The last")).to_be_visible()
    for _ in range(2):
        assert await page.locator("hub-feed li").count() >= 2 * len(TEXTS) + 1
        for text in TEXTS:
            expected = re.compile(re.escape(shown(text)).replace(r"\ ", r"\s+"))
            await expect(page.locator("hub-feed dd").filter(has_text=expected).first).to_be_visible()
        for summary in await page.locator("hub-feed summary").all():
            await summary.click()
        await page.get_by_role("button", name="Commands for the topic").click()
        await assert_harmless(page)
        await page.reload()


async def test_tasks(watched: OpenPage, publish: Publish) -> None:
    page = await watched("admin", "/tasks/")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))
    states = ["progress", "failed", "succeeded"]

    for number, text in enumerate(TEXTS):
        task = {
            "id": text,
            "name": text,
            "state": states[number % 3],
            "done": 1,
            "total": None,
            "note": text,
        }
        times = {"started_at": MOMENT, "updated_at": MOMENT, "finished_at": MOMENT}
        await publish("tasks:all", task | times | {"error": text, "result_url": LINKS[number % 8]}, "task.progress")
    odd = {"id": "odd", "name": "odd", "state": "failed", "note": TEMPLATE, "error": TEMPLATE, "result_url": TEMPLATE}
    await publish("tasks:all", odd | {"started_at": MOMENT, "updated_at": MOMENT, "finished_at": None}, "task.odd")

    await expect(page.locator("hub-tasks li")).to_have_count(len(TEXTS) + 1)
    await expect_texts(page.locator("hub-tasks li .error"), TEXTS)
    await expect(page.locator("hub-tasks li a")).to_have_count(0)


async def test_values(watched: OpenPage, publish: Publish) -> None:
    page = await watched("ana", "/")
    chart = page.locator("hub-chart[value=cpu]")
    await expect(page.locator("hub-connection")).to_have_text(re.compile("live"))

    for value in [*TEXTS, TEMPLATE, None, [TEMPLATE]]:
        await publish("dashboard:system", {"cpu": value, "memory": value}, "sample")
    await publish("dashboard:system", {"cpu": 31.4}, "sample")

    async with asyncio.timeout(20):
        while not await chart.evaluate("chart => chart.samples.some((sample) => sample.value === 31.4)"):
            await page.evaluate("new Promise(requestAnimationFrame)")
    await expect(chart.locator("canvas")).to_be_visible()


async def test_a_state_ends_no_script_element(watched: OpenPage, hub: Hub, publish: Publish) -> None:
    page = await watched("ana", "/chat/states/")
    for text in TEXTS:
        await publish("chat:states", {"message": text}, "chat.message")

    source = await (await page.request.get(f"{hub.url}/chat/states/")).text()

    state = source.partition('<hub-chat room="states"><script type="application/json">')[2].partition("</script>")[0]
    assert [message["data"]["message"] for message in json.loads(state)["messages"]] == TEXTS
    assert not re.search("[<>&]", state)
    await page.reload()
    await expect(page.locator("hub-chat .message")).to_have_count(len(TEXTS))
