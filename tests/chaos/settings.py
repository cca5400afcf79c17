"""The hub's settings for the processes of these tests: their tasks, and a broker that gives tasks back in seconds."""

from __future__ import annotations

from hub.settings import *  # noqa: F403
from hub.settings import CELERY_BROKER_TRANSPORT_OPTIONS, EMBEDDED, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos"]
if not EMBEDDED:
    # A task of a killed worker comes back when it was silent for the first, at the next look after the second.
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        **CELERY_BROKER_TRANSPORT_OPTIONS,
        "visibility_timeout": 3,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
