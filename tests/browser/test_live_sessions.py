"""An administrator sees who is connected, and ends it."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.servers import Hub

LIST = "/admin/hub_delivery/livesession/"

pytestmark = pytest.mark.timeout(120)


async def watch_sockets(page: Page) -> None:
    """Let a page note how many sockets it opens, and the codes with which they are closed; its clock can be moved."""
    await page.clock.install()
    await page.add_init_script(
        """
        window.closeCodes = [];
        window.opened = 0;
        window.WebSocket = class extends window.WebSocket {
          constructor(...given) {
            super(...given);
            window.opened += 1;
            this.addEventListener("close", ({ code }) => window.closeCodes.push(code));
          }
        };
        """
    )
    await page.reload()


async def test_an_administrator_ends_the_session_of_a_user(open_page: OpenPage) -> None:
    ana = await open_page("ana", "/chat/planning/")
    await watch_sockets(ana)
    pill = ana.locator("hub-connection")
    await expect(pill).to_have_text(re.compile("live"))
    admin = await open_page("admin", f"{LIST}?user=ana")
    rows = admin.locator("#content-main tbody tr")
    await expect(rows).to_have_count(1)

    await rows.get_by_role("button", name="End").click()

    await expect(admin.get_by_text("1 session was ended.")).to_be_visible()
    await expect(rows).to_have_count(0)
    await expect(pill).to_have_text(re.compile("signed out"))
    assert await ana.evaluate("window.closeCodes") == [3503]
    await ana.clock.fast_forward("05:00")  # every retry that was planned would be made now
    await expect(pill).to_have_text(re.compile("signed out"))
    assert await ana.evaluate("window.opened") == 1
    await admin.reload()
    await expect(rows).to_have_count(0)


async def test_a_user_who_is_signed_out_has_to_sign_in_again(open_page: OpenPage, hub: Hub) -> None:
    bob = await open_page("bob", "/chat/planning/")
    await expect(bob.locator("hub-connection")).to_have_text(re.compile("live"))
    admin = await open_page("admin", f"{LIST}?user=bob")

    await admin.get_by_role("button", name="Sign out everywhere").click()

    await expect(admin.get_by_text("the user has to sign in again")).to_be_visible()
    await expect(bob.locator("hub-connection")).to_have_text(re.compile("signed out"))
    await bob.reload()
    await expect(bob).to_have_url(f"{hub.url}/accounts/login/?next=/chat/planning/")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_list_fits_a_phone(open_page: OpenPage, scheme: str) -> None:
    ana = await open_page("ana", "/chat/planning/")
    await expect(ana.locator("hub-connection")).to_have_text(re.compile("live"))
    admin = await open_page("admin", "/admin/", color_scheme=scheme)
    await admin.set_viewport_size({"width": 360, "height": 800})

    await admin.goto(f"{ana.url.partition('/chat/')[0]}{LIST}?user=ana")

    await expect(admin.get_by_role("button", name="End", exact=True)).to_be_in_viewport()
    assert await admin.evaluate("document.documentElement.scrollWidth") <= 360
