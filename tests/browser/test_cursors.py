"""Pages of a site's own, whose scripts begin where the page's view began to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.conftest import API_KEY, OPEN_TOPICS
from tests.servers import PROJECT, Hub

pytestmark = pytest.mark.timeout(120)

SDK = PROJECT / "notifications/web/node_modules/centrifuge/dist/centrifuge.js"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A site that has the hub's apps."""
    running = Hub(
        tmp_path_factory.mktemp("site"),
        DJANGO_SETTINGS_MODULE="tests.browser.shop.settings",
        HUB_TOPICS=OPEN_TOPICS,
        HUB_API_KEYS=API_KEY,
    )
    yield running
    running.stop()


async def publish(hub: Hub, topic: str, name: str) -> None:
    """Publish what a page shows, but no row of the database has."""
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        answer = await client.post(f"{hub.url}/api/publish", json={"channel": topic, "data": {"name": name}})
        assert "result" in answer.json(), answer.text


async def shows(page: Page, *names: str) -> None:
    """The page shows these in this order, and nothing besides."""
    await expect(page.locator("li")).to_have_text(list(names))


@pytest.fixture
def open_own(open_page: OpenPage, hub: Hub) -> Callable[..., Awaitable[Page]]:
    """Opens a page of the site; with `meanwhile`, that is published when the page is there and its script is not."""

    async def open_it(path: str, kind: str, name: str, *, meanwhile: str | None = None) -> Page:
        page = await open_page(None, "/accounts/login/")

        async def send(route: Route) -> None:
            if meanwhile is not None:
                await publish(hub, f"open:{name}", meanwhile)
            await (route.continue_() if kind == "kit" else route.fulfill(path=SDK, content_type="text/javascript"))

        await page.route("**/hub.js" if kind == "kit" else "**/centrifuge.js", send)
        await page.goto(f"{hub.url}/{path}/{kind}/{name}/")
        return page

    return open_it


@pytest.mark.parametrize("kind", ["kit", "sdk"])
async def test_what_is_published_while_a_page_opens_arrives_once(
    open_own: Callable[..., Awaitable[Page]], hub: Hub, kind: str
) -> None:
    name = f"once-{kind}"

    page = await open_own("own", kind, name, meanwhile="before the script")
    await shows(page, f"{name} 0", "before the script")
    await publish(hub, f"open:{name}", "live")
    await shows(page, f"{name} 0", "before the script", "live")

    # What it has got already is not asked for again.
    await page.evaluate("client.disconnect()")
    await publish(hub, f"open:{name}", "while it was away")
    await page.evaluate("client.connect()")
    await shows(page, f"{name} 0", "before the script", "live", "while it was away")

    # What the view's query has found now is not sent any more.
    await page.reload()
    await shows(page, f"{name} 0", f"{name} 1", "before the script")


@pytest.mark.parametrize("kind", ["kit", "sdk"])
async def test_a_page_that_has_no_cursor_is_told_to_load_its_state(
    open_own: Callable[..., Awaitable[Page]], hub: Hub, kind: str
) -> None:
    name = f"blind-{kind}"

    page = await open_own("blind", kind, name)
    await shows(page, "to be loaded again")
    await publish(hub, f"open:{name}", "live")

    await shows(page, "to be loaded again", "live")


FOLLOW = """async ([topic, since]) => {
    const { hub } = await import("hub");
    const seen = (window.seen = []);
    hub.topic(topic).on("*", (event) => seen.push(event.data.name), since);
}"""


async def test_who_follows_later_begins_at_the_present_or_where_they_say(
    open_own: Callable[..., Awaitable[Page]], hub: Hub
) -> None:
    page = await open_own("own", "kit", "later")
    await shows(page, "later 0")
    await page.wait_for_function("document.readyState === 'complete'")
    position = await page.evaluate("JSON.parse(document.getElementById('hub-cursors').textContent)['open:later']")

    await page.evaluate(FOLLOW, ["open:later"])
    await publish(hub, "open:later", "live")
    await shows(page, "later 0", "live")
    assert await page.evaluate("seen") == ["live"]

    await page.evaluate(FOLLOW, ["open:later", position])
    await page.wait_for_function("seen.length === 2")
    assert await page.evaluate("seen") == ["later 0", "live"]
