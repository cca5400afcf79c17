"""Topic declarations: which topics exist, who may do what on them, and what they keep."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec
from django.apps import apps
from django.utils.module_loading import module_has_submodule

from notifications.events.event import DEFAULT_TYPE, Sender
from notifications.events.exceptions import InvalidEvent, UnknownTopic
from notifications.events.retention import Retention, ephemeral

MAX_NAME_LENGTH = 255

_CONVERTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": (r"[^:]+", str),
    "int": (r"[0-9]{1,18}", int),
    "slug": (r"[-a-zA-Z0-9_]+", str),
    "uuid": (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid.UUID),
    "path": (r".+", str),
}
_GROUP_NAME = re.compile(r"[a-zA-Z\d\-_.]{1,99}")
_PART = re.compile(r"<(?:(?P<converter>[a-z]+):)?(?P<name>[a-z_][a-z0-9_]*)>")


# The methods of which `asks_only_identity` speaks.
_ASKED = {"may_subscribe", "may_publish", "may_read_history", "may_see_presence", "server_subscriptions"}


class Topic:
    """Declares the topics whose names match `pattern`; subclass it in an app's `topics.py`.

    The pattern has typed parts like a URL's: `orders:<int:order_id>`; the converters are str (no colon, the
    default), int, slug, uuid and path (anything). The parts are given to the permission methods by name.
    Everything is denied until a method allows it. Permission methods may use the database; they run in a
    database thread, never on the path of an event.
    """

    pattern: ClassVar[str]
    retention: ClassVar[Retention] = ephemeral()
    #: The type of events that clients publish, and of those published over HTTP without one.
    default_type: ClassVar[str] = DEFAULT_TYPE
    #: Schema of `data` by event type: any type that msgspec can convert to; and that of the types not named, or None
    #: where these may have any data.
    schemas: ClassVar[Mapping[str, Any]] = {}
    default_schema: ClassVar[Any] = None
    #: Whether subscribers are listed, and whether joining and leaving is told to the others.
    presence: ClassVar[bool] = False
    join_leave: ClassVar[bool] = False
    #: Whether it is told also to clients of the Centrifuge protocol that did not ask to be told.
    force_join_leave: ClassVar[bool] = False
    #: What every subscriber may do besides receiving, without asking again: "publish", "history", "presence".
    subscribers_may: ClassVar[frozenset[str]] = frozenset()
    #: Whether the permission methods, and `server_subscriptions()`, look at nothing of the user but `pk` and
    #: `is_authenticated`, and never block. They are then called on the event loop, and nobody waits for a query.
    asks_only_identity: ClassVar[bool] = False
    #: What brings a subscriber up to date that was away: "stream", all that it missed; or "cache", the newest event,
    #: if it does not have it.
    recovery: ClassVar[Literal["stream", "cache"]] = "stream"
    #: Whether subscribers that ask for it get, instead of `data`, what differs from the data before.
    deltas: ClassVar[bool] = False
    #: Whether subscribers may name the tags of the events that they want.
    filterable: ClassVar[bool] = False
    #: Whether subscribers that do not keep up get, once they can, the newest event per `key` instead of all of them.
    conflates: ClassVar[bool] = False
    #: A plain Channels group that mirrors the topic, formatted with the parts, and its handler's type.
    channels_group: ClassVar[str | None] = None
    channels_type: ClassVar[str] = "chat_message"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "asks_only_identity" not in vars(cls) and _ASKED & vars(cls).keys():
            cls.asks_only_identity = False  # what a base class promised of its methods says nothing of others

    @classmethod
    def compiled(cls) -> tuple[re.Pattern[str], dict[str, Callable[[str], Any]]]:
        """What `compile_pattern()` makes of the pattern: what names match, and the converter of each part."""
        return compile_pattern(cls.pattern)

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        """Whether `user` (a Django user, maybe anonymous) may receive the topic's events."""
        return False

    def may_publish(self, user: Any, *args: Any, **parts: Any) -> bool:
        """Whether `user` may publish from a client; code on the server always may."""
        return False

    def may_read_history(self, user: Any, *args: Any, **parts: Any) -> bool:
        """Whether `user` may read kept events; by default whoever may subscribe."""
        return self.may_subscribe(user, **parts)

    def may_see_presence(self, user: Any, *args: Any, **parts: Any) -> bool:
        """Whether `user` may see who is subscribed."""
        return False

    def server_subscriptions(self, user: Any) -> Iterable[str]:
        """Names of topics of this declaration to which the server subscribes every session of `user`."""
        return ()

    @classmethod
    def describe_permissions(cls) -> dict[str, str]:
        """Who may do what, in words, for `manage.py topics`: the first line of each method's docstring."""
        words = {}
        for action in ("subscribe", "publish", "read_history", "see_presence"):
            method = getattr(cls, f"may_{action}")
            if method is getattr(Topic, f"may_{action}"):
                words[action] = "as subscribe" if action == "read_history" else "nobody"
            else:
                words[action] = (method.__doc__ or "as the code decides").strip().splitlines()[0]
        for action, name in (
            ("publish", "publish"),
            ("history", "read_history"),
            ("presence", "see_presence"),
        ):
            if action in cls.subscribers_may:
                words[name] = (
                    "subscribers" if words[name] in ("nobody", "as subscribe") else f"{words[name]}, subscribers"
                )
        return words


class ResolvedTopic(NamedTuple):
    """A topic by its name: the declaration it matches, and the values of the name's parts."""

    name: str
    declaration: Topic
    parts: dict[str, Any]

    @property
    def retention(self) -> Retention:
        return self.declaration.retention

    @property
    def mirror_group(self) -> str | None:
        """The plain Channels group that mirrors this topic, or None; a group allows fewer names than a topic."""
        template = self.declaration.channels_group
        group = None if template is None else template.format(**self.parts)
        return group if group and _GROUP_NAME.fullmatch(group) else None

    def allows(self, action: str, user: Any) -> bool:
        """Whether the declaration lets `user` do `action`: subscribe, publish, read_history, see_presence."""
        method: Callable[..., bool] = getattr(self.declaration, f"may_{action}")
        return bool(method(user, **self.parts))

    def may_be_read_by(self, user: Any) -> bool:
        """Whether `user` may read kept events, by their own right or as a subscriber."""
        if self.allows("read_history", user):
            return True
        return "history" in self.declaration.subscribers_may and self.allows("subscribe", user)

    def check_data(self, type: str, data: Any) -> None:
        """Raise InvalidEvent when `data` does not fit the schema declared for events of `type`."""
        schema = self.declaration.schemas.get(type, self.declaration.default_schema)
        if schema is None:
            return
        try:
            msgspec.convert(data, schema)
        except msgspec.ValidationError as error:
            raise InvalidEvent(f"data of {type!r} on {self.name!r}: {error}") from error


def compile_pattern(pattern: str) -> tuple[re.Pattern[str], dict[str, Callable[[str], Any]]]:
    """The regular expression of a topic pattern, and the converter of each part.

    Raises ValueError for an unknown converter or a part that is named twice.
    """
    expression, converters, position = "", {}, 0
    for part in _PART.finditer(pattern):
        converter, name = part["converter"] or "str", part["name"]
        if converter not in _CONVERTERS:
            raise ValueError(f"{pattern!r}: no converter {converter!r}; there are {', '.join(_CONVERTERS)}")
        if name in converters:
            raise ValueError(f"{pattern!r} names the part {name!r} twice")
        accepted, convert = _CONVERTERS[converter]
        converters[name] = convert
        expression += re.escape(pattern[position : part.start()]) + f"(?P<{name}>{accepted})"
        position = part.end()
    if "<" in pattern[position:] or ">" in pattern[position:]:
        raise ValueError(f"{pattern!r} has a part that is not <name> or <converter:name>")
    return re.compile(expression + re.escape(pattern[position:])), converters


class _Declared(NamedTuple):
    declaration: Topic
    expression: re.Pattern[str]
    converters: dict[str, Callable[[str], Any]]


class TopicRegistry:
    """The declared topics of this process, found by name."""

    def __init__(self) -> None:
        self._declared: list[_Declared] = []
        self._changed()

    def register(self, declaration: type[Topic]) -> type[Topic]:
        """Add a declaration; usable as a decorator. Raises ValueError when its pattern is not valid."""
        expression, converters = declaration.compiled()
        if declaration.channels_group is not None:
            declaration.channels_group.format(**dict.fromkeys(converters, ""))
        self._declared.append(_Declared(declaration(), expression, converters))
        self._changed()
        return declaration

    def unregister(self, declaration: type[Topic]) -> None:
        """Take a declaration back; a test's counterpart of `register()`."""
        self._declared = [known for known in self._declared if type(known.declaration) is not declaration]
        self._changed()

    def _changed(self) -> None:
        self.resolve.cache_clear()
        #: The declarations to whose topics the server subscribes sessions.
        self.subscribing = [
            declaration
            for declaration in self.declarations
            if type(declaration).server_subscriptions is not Topic.server_subscriptions
        ]

    @property
    def declarations(self) -> list[Topic]:
        """Every declaration, in the order of registration."""
        return [declared.declaration for declared in self._declared]

    @functools.lru_cache(maxsize=65_536)  # noqa: B019 - the registry lives as long as the process
    def resolve(self, name: str) -> ResolvedTopic:
        """The topic called `name`. Raises UnknownTopic when no declaration matches, or the name is not valid."""
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable():
            for declaration, expression, converters in self._declared:
                if match := expression.fullmatch(name):
                    try:
                        parts = {part: converters[part](text) for part, text in match.groupdict().items()}
                    except ValueError:
                        continue
                    return ResolvedTopic(name, declaration, parts)
        hint = (
            "install notifications.inbox" if str(name).startswith("#") else "`manage.py topics` lists what is declared"
        )
        raise UnknownTopic(f"no declaration matches the topic {name!r}; {hint}")

    def mirrored_by(self, group: str, type: str) -> ResolvedTopic | None:
        """The topic that is mirrored by a plain Channels group for messages of `type`, or None."""
        for declaration, _, _ in self._declared:
            if declaration.channels_group is None or declaration.channels_type != type:
                continue
            expression, _ = compile_pattern(re.sub(r"{(\w+)}", r"<path:\1>", declaration.channels_group))
            if match := expression.fullmatch(group):
                name = _PART.sub(lambda part, found=match: found[part["name"]], declaration.pattern)  # type: ignore[misc]
                try:
                    return self.resolve(name)
                except UnknownTopic:
                    continue
        return None

    def autodiscover(self) -> None:
        """Register the Topic classes of every installed app's `topics` module."""
        for config in apps.get_app_configs():
            if module_has_submodule(config.module, "topics"):
                self.register_module(f"{config.name}.topics")

    def register_module(self, path: str) -> None:
        """Register the Topic classes that the module at `path` itself defines, in their order."""
        module = import_module(path)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Topic)
                and value.__module__ == module.__name__
                and hasattr(value, "pattern")
            ):
                self.register(value)


registry = TopicRegistry()


def resolve(name: str) -> ResolvedTopic:
    """The topic called `name`; raises UnknownTopic when nothing declares it."""
    return registry.resolve(name)


def namespace_of(name: str) -> str:
    """The namespace of a topic's name: what stands before the first colon, "#" for personal topics, or "".

    A leading "$", which makes a topic private (see `configured`), is no part of it.
    """
    if name.startswith(("#", "$")):
        if name[0] == "#":
            return "#"
        name = name[1:]
    namespace, colon, _ = name.partition(":")
    return namespace if colon else ""


def user_topic(user: Any) -> str:
    """The personal topic of `user`, to which all their clients are subscribed by the server."""
    return f"#{user.pk}"


def sender_of(user: Any, client: str = "") -> Sender:
    """`user` as the sender of an event: the id and the name that others see."""
    if not getattr(user, "is_authenticated", False):
        return Sender(client=client)
    return Sender(user=str(user.pk), client=client, info={"name": user.get_full_name() or user.get_username()})
