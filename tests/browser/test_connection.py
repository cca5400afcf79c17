"""What a page shows when its hub goes away and comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, Cookie, expect

from tests.conftest import API_KEY
from tests.servers import Hub, free_port

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def restarted(tmp_path: Path) -> AsyncIterator[list[Hub]]:
    """Hubs that were started one after the other on one folder and port."""
    hubs = [Hub(tmp_path, port=free_port(), HUB_API_KEYS=API_KEY)]
    yield hubs
    hubs[-1].stop()


async def test_a_page_gets_what_it_missed_while_the_hub_was_down(browser: Browser, restarted: list[Hub]) -> None:
    hub = restarted[0]
    context = await browser.new_context()
    await context.add_cookies([{"name": "sessionid", "value": hub.sign_in(), "url": hub.url}])
    page = await context.new_page()
    await page.goto(f"{hub.url}/chat/lobby/")
    pill = page.locator("hub-connection")
    await expect(pill).to_have_text(re.compile("live"))

    hub.kill()
    await expect(pill).to_have_text(re.compile("reconnecting|offline"))
    again = Hub(hub.folder, port=hub.port, HUB_API_KEYS=API_KEY)
    restarted.append(again)
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
        body = {"channel": "chat:lobby", "data": {"message": "said meanwhile"}}
        await client.post(f"{again.url}/api/publish", json=body)

    await expect(page.get_by_text("said meanwhile")).to_be_visible(timeout=40_000)
    await expect(pill).to_have_text(re.compile("live"), timeout=40_000)
    await context.close()


async def passports(context: BrowserContext) -> list[Cookie]:
    """The passports of a browser, once it has one."""
    async with asyncio.timeout(10):
        while not (found := [cookie for cookie in await context.cookies() if cookie["name"] == "hub_passport"]):
            await asyncio.sleep(0.05)
    return found


async def test_a_browser_that_was_connected_comes_back_with_its_passport(browser: Browser, hub: Hub) -> None:
    context = await browser.new_context()
    await context.add_cookies([{"name": "sessionid", "value": hub.sign_in(), "url": hub.url}])
    page = await context.new_page()
    pill = page.locator("hub-connection")
    await page.goto(f"{hub.url}/chat/lobby/")
    await expect(pill).to_have_text(re.compile("live"))

    (first,) = await passports(context)
    await page.reload()
    await expect(pill).to_have_text(re.compile("live"))
    (second,) = await passports(context)

    assert (first["httpOnly"], first["sameSite"], first["path"]) == (True, "Lax", "/")
    # The database was not asked again, or there would be another one.
    assert second["value"] == first["value"]
    await context.close()
