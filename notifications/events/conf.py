"""The settings of the apps, each with its default: the one table that code and documentation read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the apps: its default value, what it does, with units, and the smallest number it may be."""

    default: Any
    help: str
    minimum: float = 1

    @property
    def is_number(self) -> bool:
        return isinstance(self.default, int | float) and not isinstance(self.default, bool)


SETTINGS: dict[str, Setting] = {
    "HUB_TOPICS": Setting({}, "Topics declared without code: {namespace: {option: value}}."),
    "HUB_REDIS_URL": Setting("", "Redis of the window log, presence and control plane; empty: in memory."),
    "HUB_SOCKET": Setting("", "Unix socket of the process that owns the memory log; empty: each its own."),
    "HUB_MAX_DATA_BYTES": Setting(65_536, "Largest `data` of an event, in bytes of JSON."),
    "HUB_MAX_MESSAGE_BYTES": Setting(65_536, "Largest message from a client, in bytes."),
    "HUB_WEBSOCKET_DEFLATE": Setting(False, "Whether large messages are compressed for clients that offer it."),
    "HUB_MAX_SUBSCRIPTIONS": Setting(128, "Subscriptions of one session."),
    "HUB_MAX_OUTGOING_BYTES": Setting(1_048_576, "Unsent bytes of one session before it is disconnected as slow."),
    "HUB_MAX_HISTORY": Setting(300, "Events in one answer to history, and in one recovery."),
    "HUB_MAX_BATCH": Setting(10_000, "Commands of a batch, and topics of a broadcast, in one request to the HTTP API."),
    "HUB_MAX_JSON_DEPTH": Setting(32, "Levels to which JSON of clients and of the HTTP API may nest."),
    "HUB_MAX_SESSIONS": Setting(0, "Sessions of one server process; 0: no limit.", 0),
    "HUB_MAX_SESSIONS_PER_USER": Setting(0, "Sessions of one user in one server process; 0: no limit.", 0),
    "HUB_MAX_CONNECTIONS_PER_SECOND": Setting(0, "New connections of one server process; 0: no limit.", 0),
    "HUB_MAX_COMMANDS_PER_SECOND": Setting(0, "Commands of one session; 0: no limit.", 0),
    "HUB_MAX_PUBLISHES_PER_SECOND": Setting(0, "What one user publishes, in all processes together; 0: no limit.", 0),
    "HUB_MAX_API_REQUESTS_PER_SECOND": Setting(0, "Calls with one API key, in all processes together; 0: no limit.", 0),
    "HUB_IDEMPOTENCY_SECONDS": Setting(300, "How long an idempotency key is remembered."),
    "HUB_POSITION_TTL_SECONDS": Setting(30 * 86_400, "How long a window topic remembers its offset unused."),
    "HUB_POSITION_CHECK_SECONDS": Setting(3.0, "How often live topics are compared with their logs.", 0.01),
    "HUB_RECHECK_SECONDS": Setting(60.0, "How often every session's permissions are asked again."),
    "HUB_PRESENCE_TTL_SECONDS": Setting(60, "Lease of a presence entry.", 3),
    "HUB_PRESENCE_MAX_MEMBERS": Setting(1_000, "Subscribers beyond which a topic is only counted; 0: no limit.", 0),
    "HUB_PING_SECONDS": Setting(25, "How often a silent session is pinged."),
    "HUB_PONG_SECONDS": Setting(8, "How long a session may take to answer a ping."),
    "HUB_EXPIRED_SECONDS": Setting(25, "How long an expired session or subscription may take to be refreshed.", 0),
    "HUB_STALE_SECONDS": Setting(15, "How long a connection may stay open without `connect`."),
    "HUB_DRAIN_SECONDS": Setting(5.0, "Over how long a process that stops closes its sessions; 0: at once.", 0),
    "HUB_DATABASE_THREADS": Setting(4, "Threads of a server process for permission checks and durable logs."),
    "HUB_REDIS_TIMEOUT_SECONDS": Setting(0.9, "How long publishing waits for Redis before it raises.", 0.01),
    "HUB_TOKEN_SECRET": Setting("", "Secret that signs and verifies tokens (JWT with HS256, HS384 or HS512)."),
    "HUB_TOKEN_PREVIOUS_SECRETS": Setting([], "Secrets still accepted, each as `secret` or `secret@ISO time`."),
    "HUB_TOKEN_PUBLIC_KEY": Setting("", "PEM keys that verify tokens (RS256 to RS512, ES256 to ES512, EdDSA)."),
    "HUB_TOKEN_JWKS_URL": Setting("", "Address that lists such keys (JWKS); kept for an hour."),
    "HUB_TOKEN_AUDIENCE": Setting("", "What `aud` of tokens must be or hold; empty: anything."),
    "HUB_TOKEN_ISSUER": Setting("", "What `iss` of tokens must be; empty: anything."),
    "HUB_SUBSCRIPTION_TOKEN_SECRET": Setting("", "Secret of subscription tokens; empty: the keys of the others."),
    "HUB_ALLOWED_ORIGINS": Setting([], "Origins whose pages may use cookies besides our own; *: any, but without."),
    "HUB_ALLOW_ANONYMOUS": Setting(True, "Whether clients without credentials may connect at all."),
    "HUB_PUBLIC_CHAT_ROOMS": Setting([], "Chat rooms that are open to visitors who are not signed in."),
    "HUB_API_KEYS": Setting([], "Keys of the HTTP API given by the environment, with every right."),
    "HUB_TASK_LOST_SECONDS": Setting(600, "Silence after which a running task's worker is taken for dead."),
    "HUB_TRUSTED_PROXIES": Setting(0, "Proxies in front whose X-Forwarded-For tells a client's address.", 0),
    "HUB_METRICS_TOKEN": Setting("", "Bearer token that /metrics asks for; empty: open."),
}


_values: dict[str, Any] = {}


def get(name: str) -> Any:
    """The value of a setting of the table, or its default. Raises KeyError for a name not in the table.

    Kept once it was asked for, as Django takes several microseconds for a setting that a site has not set; a change
    at run time counts when `setting_changed` tells of it, as `override_settings` does.
    """
    try:
        return _values[name]
    except KeyError:
        value = _values[name] = getattr(settings, name, SETTINGS[name].default)
        return value


def _forget(*, setting: str, **_: Any) -> None:
    _values.pop(setting, None)


setting_changed.connect(_forget, dispatch_uid="hub-settings")
