"""Topics declared without code, in the setting `HUB_TOPICS`, with the option names of Centrifugo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from notifications.events.retention import Retention, durable, ephemeral, window
from notifications.events.topics import Topic

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}

BOOLEANS = frozenset(
    {
        "presence",
        "join_leave",
        "force_push_join_leave",
        "force_positioning",
        "allow_positioning",
        "force_recovery",
        "allow_recovery",
        "durable",
        "allow_subscribe_for_client",
        "allow_subscribe_for_anonymous",
        "allow_publish_for_client",
        "allow_publish_for_anonymous",
        "allow_publish_for_subscriber",
        "allow_history_for_client",
        "allow_history_for_anonymous",
        "allow_history_for_subscriber",
        "allow_presence_for_client",
        "allow_presence_for_anonymous",
        "allow_presence_for_subscriber",
    }
)
OPTIONS = BOOLEANS | {"history_size", "history_ttl"}


def parse_duration(value: Any) -> float:
    """Seconds of a duration such as "300s", "5m", "1h30m" or a number. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value)
    if not text or _DURATION.sub("", text):
        raise ValueError(f"{value!r} is not a duration such as '300s' or '1h30m'")
    return sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(text))


class ConfiguredTopic(Topic):
    """A namespace of `HUB_TOPICS`: whoever is named by its `allow_…` options may do that."""

    asks_only_identity = True
    options: Mapping[str, Any] = {}

    def _allows(self, action: str, user: Any) -> bool:
        if user is not None and user.is_authenticated and self.options.get(f"allow_{action}_for_client"):
            return True
        return bool(self.options.get(f"allow_{action}_for_anonymous"))

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("subscribe", user)

    def may_publish(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("publish", user)

    def may_read_history(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("history", user)

    def may_see_presence(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("presence", user)


def declaration_of(namespace: str, options: Mapping[str, Any]) -> type[Topic]:
    """The declaration of one namespace; "" stands for topics without one.

    Raises ValueError with a sentence that names the option when it is unknown or has a value of the wrong sort.
    """
    where = f"HUB_TOPICS[{namespace!r}]"
    if not re.fullmatch(r"[-\w.]*", namespace):
        raise ValueError(f"{where}: a namespace has letters, digits, '-', '_' and '.' only")
    if not isinstance(options, Mapping):
        raise ValueError(f"{where} must be an object of options, not {options!r}")
    for option, value in options.items():
        if option not in OPTIONS:
            raise ValueError(f"{where} has no option {option!r}; there are {', '.join(sorted(OPTIONS))}")
        if option in BOOLEANS and not isinstance(value, bool):
            raise ValueError(f"{where}[{option!r}] must be true or false, not {value!r}")
    return type(
        f"Configured{namespace.title()}Topic",
        (ConfiguredTopic,),
        {
            "__module__": __name__,
            "pattern": f"{namespace}:<path:rest>" if namespace else "<name>",
            "options": options,
            "retention": _retention(where, options),
            "presence": options.get("presence", False),
            "join_leave": options.get("join_leave", False),
            "subscribers_may": frozenset(
                action for action in ("publish", "history", "presence") if options.get(f"allow_{action}_for_subscriber")
            ),
        },
    )


def _retention(where: str, options: Mapping[str, Any]) -> Retention:
    size = options.get("history_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{where}['history_size'] must be a whole number of events, not {size!r}")
    try:
        seconds = parse_duration(options.get("history_ttl", 0))
    except ValueError as error:
        raise ValueError(f"{where}['history_ttl']: {error}") from error
    if options.get("durable"):
        return durable(days=seconds / 86_400 if seconds else 30, size=size or None)
    if size and seconds:
        return window(size=size, seconds=max(1, round(seconds)))
    if size or seconds:
        raise ValueError(f"{where} keeps a window only with both 'history_size' and 'history_ttl'")
    return ephemeral()
