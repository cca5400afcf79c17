"""The hub's settings, with the app."""

from __future__ import annotations

from hub.settings import *  # noqa: F403
from hub.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.sdk.shop"]
