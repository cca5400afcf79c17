from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.servers import Hub

#: What the SDKs' own suites expect of their server.
TOKEN_SECRET = "secret"
API_KEY = "test-api-key"

SUBSCRIBED = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_subscriber": True,
    "allow_history_for_subscriber": True,
    "allow_presence_for_subscriber": True,
}
KEPT = {**SUBSCRIBED, "history_size": 100, "history_ttl": "300s", "force_recovery": True}
TOPICS = {
    "": {
        **KEPT,
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "allowed_delta_types": ["fossil"],
        "allow_presence_for_client": True,
        "allow_presence_for_anonymous": True,
    },
    "test": KEPT,
    "recovery": KEPT,
    "smallhistory": {**KEPT, "history_size": 2},
    "presence": {**SUBSCRIBED, "presence": True},
    "joinleave": {**SUBSCRIBED, "presence": True, "join_leave": True},
    "delta": {**KEPT, "allowed_delta_types": ["fossil"]},
    "filter": {**KEPT, "allow_tags_filter": True},
    "cache": {**KEPT, "force_recovery_mode": "cache"},
    "limited": {"allow_user_limited_channels": True, "presence": True},
    "private": {"presence": True, "allow_presence_for_subscriber": True},
    "fleeting": SUBSCRIBED,
}


@pytest.fixture(scope="session")
def sdk_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub as the SDKs' own suites expect their server, which pings and ends what has expired within seconds."""
    running = Hub(
        tmp_path_factory.mktemp("sdk"),
        DJANGO_SETTINGS_MODULE="tests.sdk.shop.settings",
        HUB_TOPICS=json.dumps(TOPICS),
        HUB_API_KEYS=f"{API_KEY},api_key",
        HUB_TOKEN_SECRET=TOKEN_SECRET,
        HUB_PING_SECONDS="1",
        HUB_EXPIRED_SECONDS="3",
    )
    yield running
    running.stop()
