"""The hub's settings, with the site's pages before the hub's."""

from __future__ import annotations

from hub.settings import *  # noqa: F403

ROOT_URLCONF = "tests.browser.shop.urls"
