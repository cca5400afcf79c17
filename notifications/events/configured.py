"""Topics declared without code, in the setting `HUB_TOPICS`, with the option names of Centrifugo."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from notifications.events import conf
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
        "allow_tags_filter",
        "conflate",
        "allow_user_limited_channels",
    }
)
CHOICES: Mapping[str, Sequence[str]] = {
    "force_recovery_mode": ("", "stream", "cache"),
    "recovery_mode": ("", "stream", "cache"),
    "publication_data_format": ("", "json", "json_object"),
}
OPTIONS = (
    BOOLEANS
    | CHOICES.keys()
    | {"history_size", "history_ttl", "history_meta_ttl", "allowed_delta_types", "channel_regex"}
)


def parse_duration(value: Any) -> float:
    """Seconds of a duration such as "300s", "5m", "1h30m" or a number. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value)
    if not text or _DURATION.sub("", text):
        raise ValueError(f"{value!r} is not a duration such as '300s' or '1h30m'")
    return sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION.findall(text))


class ConfiguredTopic(Topic):
    """A namespace of `HUB_TOPICS`: whoever is named by its `allow_…` options may do that.

    Those options say nothing of a private topic, whose name begins with "$": it is for holders of a subscription
    token. Nor, where the namespace has user-limited topics, do they speak to those whom a name such as `news:a#1,2`
    does not list; whom it lists may subscribe.
    """

    asks_only_identity = True
    options: Mapping[str, Any] = {}
    user_limited: ClassVar[bool] = False
    name_regex: ClassVar[re.Pattern[str] | None] = None

    @classmethod
    def compiled(cls) -> tuple[re.Pattern[str], dict[str, Callable[[str], Any]]]:
        """The pattern with a "$" before it or none, and a last part that fits the option `channel_regex`."""
        expression, converters = super().compiled()
        # Possessive: what begins with "$" is private whatever follows.
        private = re.compile(rf"(?P<private>\$?+){expression.pattern}")
        return private, {**dict.fromkeys(converters, cls._checked_rest), "private": bool}

    @classmethod
    def _checked_rest(cls, rest: str) -> str:
        if cls.name_regex is not None and not cls.name_regex.search(rest):
            raise ValueError(f"{rest!r} does not match {cls.name_regex.pattern!r}")
        return rest

    def _allows(self, action: str, user: Any, *, private: bool = False, rest: str = "") -> bool:
        signed_in = user is not None and user.is_authenticated
        if private:
            return False
        if self.user_limited and "#" in rest:
            if not signed_in or str(user.pk) not in rest.rpartition("#")[2].split(","):
                return False
            if action == "subscribe":
                return True
        if signed_in and self.options.get(f"allow_{action}_for_client"):
            return True
        return bool(self.options.get(f"allow_{action}_for_anonymous"))

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("subscribe", user, **parts)

    def may_publish(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("publish", user, **parts)

    def may_read_history(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("history", user, **parts)

    def may_see_presence(self, user: Any, *args: Any, **parts: Any) -> bool:
        """as HUB_TOPICS says"""
        return self._allows("presence", user, **parts)


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
        if option in CHOICES and value not in CHOICES[option]:
            raise ValueError(
                f"{where}[{option!r}] must be one of {', '.join(map(repr, CHOICES[option]))}, not {value!r}"
            )
    # What a topic remembers of its position is the same for all: HUB_POSITION_TTL_SECONDS.
    _seconds(where, options, "history_meta_ttl")
    return type(
        f"Configured{namespace.title()}Topic",
        (ConfiguredTopic,),
        {
            "__module__": __name__,
            "pattern": f"{namespace}:<path:rest>" if namespace else "<rest>",
            "options": options,
            "retention": _retention(where, options),
            "presence": options.get("presence", False),
            "join_leave": options.get("join_leave", False),
            "force_join_leave": options.get("force_push_join_leave", False),
            "recovery": options.get("force_recovery_mode") or options.get("recovery_mode") or "stream",
            "deltas": _deltas(where, options),
            "filterable": options.get("allow_tags_filter", False),
            "conflates": options.get("conflate", False),
            "user_limited": options.get("allow_user_limited_channels", False),
            "name_regex": _name_regex(where, options),
            "default_schema": dict if options.get("publication_data_format") == "json_object" else None,
            "subscribers_may": subscribers_may(options),
        },
    )


def subscribers_may(options: Mapping[str, Any]) -> frozenset[str]:
    """What the options let every subscriber do."""
    return frozenset(
        action for action in ("publish", "history", "presence") if options.get(f"allow_{action}_for_subscriber")
    )


def options_without_namespace() -> Mapping[str, Any]:
    """The options of names without a namespace, which personal topics are; empty when `HUB_TOPICS` has none."""
    namespaces = conf.get("HUB_TOPICS")
    options = namespaces.get("", {}) if isinstance(namespaces, Mapping) else {}
    return options if isinstance(options, Mapping) else {}


def _deltas(where: str, options: Mapping[str, Any]) -> bool:
    kinds = options.get("allowed_delta_types", [])
    if not isinstance(kinds, list | tuple) or any(kind != "fossil" for kind in kinds):
        raise ValueError(f"{where}['allowed_delta_types'] must be ['fossil'] or [], not {kinds!r}")
    return bool(kinds)


def _name_regex(where: str, options: Mapping[str, Any]) -> re.Pattern[str] | None:
    regex = options.get("channel_regex", "")
    try:
        return re.compile(regex) if regex else None
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}['channel_regex'] is no regular expression: {regex!r}") from error


def _seconds(where: str, options: Mapping[str, Any], option: str) -> float:
    try:
        return parse_duration(options.get(option, 0))
    except ValueError as error:
        raise ValueError(f"{where}[{option!r}]: {error}") from error


def _retention(where: str, options: Mapping[str, Any]) -> Retention:
    size = options.get("history_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{where}['history_size'] must be a whole number of events, not {size!r}")
    seconds = _seconds(where, options, "history_ttl")
    if options.get("durable"):
        return durable(days=seconds / 86_400 if seconds else 30, size=size or None)
    if size and seconds:
        return window(size=size, seconds=max(1, round(seconds)))
    if size or seconds:
        raise ValueError(f"{where} keeps a window only with both 'history_size' and 'history_ttl'")
    return ephemeral()
