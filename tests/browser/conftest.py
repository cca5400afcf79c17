from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.servers import PROJECT, Hub, required

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# Several pages, the hub and its worker share two cores here: five seconds are not always enough.
expect.set_options(timeout=20_000)

OpenPage = Callable[..., Awaitable[Page]]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that is installed on this machine."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        required("a Chromium")
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield running
        await running.close()


@pytest.fixture
async def open_page(browser: Browser, hub: Hub) -> AsyncIterator[OpenPage]:
    """Opens a page of the hub as a user, in a browser profile of its own: `await open_page("ana", "/chat/lobby/")`.

    The test fails when a page of it wrote an error to the console, or broke the content security policy.
    """
    errors: list[str] = []
    contexts: list[BrowserContext] = []

    async def open_as(username: str | None, path: str, **options: object) -> Page:
        context = await browser.new_context(viewport={"width": 1280, "height": 800}, **options)  # type: ignore[arg-type]
        contexts.append(context)
        if username is not None:
            cookie = hub.sign_in(username)
            await context.add_cookies([{"name": "sessionid", "value": cookie, "url": hub.url}])
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{hub.url}{path}")
        return page

    yield open_as
    for context in contexts:
        await context.close()
    assert errors == []


@pytest.fixture
def screenshot() -> Callable[[Page, str], Awaitable[None]]:
    """Keeps a picture of a page for the README, where HUB_SCREENSHOTS=1 asks for it."""

    folder = PROJECT / "docs" / "screenshots"

    async def take(page: Page, name: str) -> None:
        if os.environ.get("HUB_SCREENSHOTS") == "1":
            await page.screenshot(path=folder / f"{name}.png")

    return take
