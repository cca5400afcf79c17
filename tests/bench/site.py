"""The hub's settings with one more URL: a bare view, to compare requests of the hub's API with."""

from __future__ import annotations

from hub.settings import *  # noqa: F403

ROOT_URLCONF = "tests.bench.site_urls"
