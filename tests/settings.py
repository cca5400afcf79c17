"""The hub's settings for its own tests: files in a folder that lives as long as the run, quick password hashes."""

from __future__ import annotations

import json
import os
import tempfile

_folder = tempfile.TemporaryDirectory(prefix="hub-tests-")
os.environ["HUB_DATA"] = _folder.name
os.environ.setdefault("HUB_TOKEN_SECRET", "a secret that signs the tokens of tests alone")
os.environ.setdefault(
    "HUB_TOPICS",
    json.dumps(
        {
            "open": {
                "history_size": 10,
                "history_ttl": "300s",
                "presence": True,
                "join_leave": True,
                "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True,
                "allow_publish_for_subscriber": True,
                "allow_history_for_subscriber": True,
                "allow_presence_for_subscriber": True,
            },
            "fleeting": {"allow_subscribe_for_anonymous": True, "allow_publish_for_subscriber": True},
            "ledger": {
                "durable": True,
                "allow_subscribe_for_anonymous": True,
                "allow_history_for_subscriber": True,
            },
        }
    ),
)

from hub.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
