"""System checks: a mistake in the configuration stops the start and names its cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from channels.layers import channel_layers
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from notifications.events import conf
from notifications.events.configured import ConfiguredTopic, declaration_of
from notifications.events.exceptions import UnknownTopic
from notifications.events.redis_layer import unsupported_hosts
from notifications.events.topics import resolve

CORE_LAYER = "channels_redis.core.RedisChannelLayer"
HUB_LAYER = "notifications.events.redis_layer.RedisChannelLayer"


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
def check_shadowed_topics(**_: Any) -> list[CheckMessage]:
    """A namespace of `HUB_TOPICS` that an app declares as well has no effect."""
    configured = conf.get("HUB_TOPICS")
    messages: list[CheckMessage] = []
    for namespace in configured if isinstance(configured, Mapping) else ():
        try:
            declaration = resolve(f"{namespace}:x" if namespace else "x").declaration
        except UnknownTopic:
            continue
        if not isinstance(declaration, ConfiguredTopic):
            messages.append(
                Warning(
                    f"HUB_TOPICS[{namespace!r}] has no effect: {type(declaration).__name__} declares these topics.",
                    hint="Choose another namespace, or change the declaration in the app's topics.py.",
                    id="hub.W002",
                )
            )
    return messages


@register("hub")
def check_numbers(**_: Any) -> list[CheckMessage]:
    """Numbers must be numbers, and not too small to work with."""
    messages: list[CheckMessage] = []
    for name, setting in conf.SETTINGS.items():
        value = conf.get(name)
        if not setting.is_number:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < setting.minimum:
            messages.append(
                Error(
                    f"{name} must be a number of at least {setting.minimum}, not {value!r}.",
                    hint=f"{setting.help} The default is {setting.default}.",
                    id="hub.E006",
                )
            )
    return messages


@register("hub")
def check_origins(**_: Any) -> list[CheckMessage]:
    """Origins have a scheme: browsers send it. "*" is any."""
    return [
        Error(
            f"HUB_ALLOWED_ORIGINS: {origin!r} is no origin.",
            hint=f"Write it with its scheme, as browsers send it: https://{origin}",
            id="hub.E007",
        )
        for origin in conf.get("HUB_ALLOWED_ORIGINS")
        if "://" not in origin and origin != "*"
    ]


@register("hub")
def check_memory_log(**_: Any) -> list[CheckMessage]:
    """A memory log that belongs to nobody in particular loses what other processes publish."""
    if conf.get("HUB_REDIS_URL") or conf.get("HUB_SOCKET"):
        return []
    return [
        Warning(
            "Neither HUB_REDIS_URL nor HUB_SOCKET is set: every process has a memory log of its own, and what a shell, "
            "a command or a worker publishes to a topic that is not durable reaches nobody.",
            hint="Set HUB_REDIS_URL, or for a single server process HUB_SOCKET to the path of a Unix socket.",
            id="hub.W004",
        )
    ]


@register("hub")
def check_channel_layer(**_: Any) -> list[CheckMessage]:
    """There must be a default layer, and the core layer of channels-redis must survive redis-py 8."""
    if "default" not in getattr(settings, "CHANNEL_LAYERS", {}):
        return [
            Error(
                "CHANNEL_LAYERS has no 'default' layer, so no event can reach a browser.",
                hint="Use notifications.events.layers.InProcessChannelLayer for one process, or "
                f"{HUB_LAYER} for several.",
                id="hub.E002",
            )
        ]
    configured = channel_layers.configs["default"]
    if configured.get("BACKEND") == HUB_LAYER:
        return _check_hub_layer(configured.get("CONFIG", {}).get("hosts"))
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
                    f"{HUB_LAYER}.",
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


def _check_hub_layer(hosts: Any) -> list[CheckMessage]:
    """The hub's own layer has one Redis, at an address that can be read."""
    reason = unsupported_hosts(hosts)
    if reason is None:
        return []
    return [
        Error(
            f"CHANNEL_LAYERS: {HUB_LAYER} cannot use its hosts: {reason}.",
            hint='Give one host, as {"hosts": ["redis://…"]}, or use channels_redis.pubsub.RedisPubSubChannelLayer, '
            "which takes several hosts and Sentinel, but confirms no subscription and tells no loss.",
            id="hub.E009",
        )
    ]


@register("hub")
def check_databases(**_: Any) -> list[CheckMessage]:
    """There must be a database for durable topics, and users."""
    return [
        Error(
            f"DATABASES[{alias!r}] is no database.",
            hint="Set DATABASE_URL to an address such as postgres://user:password@host/name.",
            id="hub.E008",
        )
        for alias, database in settings.DATABASES.items()
        if database.get("ENGINE", "django.db.backends.dummy") == "django.db.backends.dummy"
    ]


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
