"""System checks: a mistake in the configuration stops the start and names its cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from channels.layers import channel_layers
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from notifications.events import conf
from notifications.events.configured import declaration_of

CORE_LAYER = "channels_redis.core.RedisChannelLayer"


@register("hub")
def check_topics(**_: Any) -> list[CheckMessage]:
    """`HUB_TOPICS` must be an object of namespaces with known options."""
    configured = conf.get("HUB_TOPICS")
    if not isinstance(configured, Mapping):
        return [
            Error(
                "HUB_TOPICS must be an object of namespaces.",
                hint='Such as {"news": {"history_size": 10, "history_ttl": "60s"}}.',
                id="hub.E001",
            )
        ]
    messages: list[CheckMessage] = []
    for namespace, options in configured.items():
        try:
            declaration_of(namespace, options)
        except ValueError as error:
            messages.append(Error(str(error), hint="Correct the setting HUB_TOPICS.", id="hub.E001"))
    return messages


@register("hub")
def check_channel_layer(**_: Any) -> list[CheckMessage]:
    """There must be a default layer, and the core layer of channels-redis must survive redis-py 8."""
    if "default" not in getattr(settings, "CHANNEL_LAYERS", {}):
        return [
            Error(
                "CHANNEL_LAYERS has no 'default' layer, so no event can reach a browser.",
                hint="Use notifications.events.layers.InProcessChannelLayer for one process, or "
                "channels_redis.pubsub.RedisPubSubChannelLayer for several.",
                id="hub.E002",
            )
        ]
    configured = channel_layers.configs["default"]
    if configured.get("BACKEND") != CORE_LAYER:
        return []
    messages: list[CheckMessage] = []
    for host in configured.get("CONFIG", {}).get("hosts", ["redis://localhost:6379"]):
        options = host if isinstance(host, dict) else {}
        timeout = options.get("socket_timeout", 5)
        if timeout is not None and timeout <= 5:
            messages.append(
                Error(
                    "CHANNEL_LAYERS: with redis-py 8 the core layer of channels-redis disconnects every idle "
                    "consumer after 5 seconds, because its blocking read meets the socket timeout.",
                    hint='Give the host as {"address": …, "socket_timeout": None, "max_connections": 1000}, or use '
                    "channels_redis.pubsub.RedisPubSubChannelLayer.",
                    id="hub.E003",
                )
            )
        if options.get("max_connections", 100) <= 100:
            messages.append(
                Warning(
                    "CHANNEL_LAYERS: redis-py 8 allows the core layer 100 connections, and the 101st client that "
                    "joins at once fails.",
                    hint='Give the host as {"address": …, "socket_timeout": None, "max_connections": 1000}.',
                    id="hub.W001",
                )
            )
    return messages


@register("hub")
def check_atomic_requests(**_: Any) -> list[CheckMessage]:
    """`ATOMIC_REQUESTS` would hold events back until the response, and serialise SQLite."""
    return [
        Error(
            f"DATABASES[{alias!r}] has ATOMIC_REQUESTS: views on an event loop cannot run in a transaction, an "
            "answer would leave before its events are published, and SQLite would serve one page at a time.",
            hint="Remove ATOMIC_REQUESTS and use transaction.atomic() where a view needs it.",
            id="hub.E004",
        )
        for alias, database in settings.DATABASES.items()
        if database.get("ATOMIC_REQUESTS")
    ]


@register("hub")
def check_sqlite_transactions(**_: Any) -> list[CheckMessage]:
    """SQLite transactions must begin IMMEDIATE: read-then-write blocks fail with "database is locked" else."""
    return [
        Error(
            f"DATABASES[{alias!r}] is SQLite with deferred transactions: writers that read first fail with "
            "'database is locked'.",
            hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}.',
            id="hub.E005",
        )
        for alias, database in settings.DATABASES.items()
        if database.get("ENGINE") == "django.db.backends.sqlite3"
        and str(database.get("OPTIONS", {}).get("transaction_mode", "")).upper() not in ("IMMEDIATE", "EXCLUSIVE")
    ]
