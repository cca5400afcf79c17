"""Functions that clients call by name, registered with `@rpc(…)` in an app's `rpc.py`: found by itself, as `topics.py`.

Everybody is denied whom the permission of a function does not allow.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from django.core.exceptions import PermissionDenied

from notifications.delivery import codes
from notifications.delivery.codes import CommandError
from notifications.delivery.identity import Identity, load_user
from notifications.delivery.keys import EVERY_TOPIC
from notifications.events.event import encode_json
from notifications.events.threads import in_database_thread

logger = logging.getLogger(__name__)

MAX_METHOD_LENGTH = 255

#: A Django permission, or a function of the user and the decoded params that may use the database.
Permission = str | Callable[[Any, Any], bool]
F = TypeVar("F", bound=Callable[..., Any])


class Context(NamedTuple):
    """Who calls: a Django user, maybe anonymous, and the id of their client, "" over HTTP."""

    user: Any
    client: str
    identity: Identity


def _anybody(user: Any, params: Any) -> bool:
    """anybody"""
    return True


def _signed_in(user: Any, params: Any) -> bool:
    """signed-in users"""
    return bool(user.is_authenticated)


ANYBODY: Permission = _anybody
SIGNED_IN: Permission = _signed_in


def acts_for_the_site(identity: Identity) -> bool:
    """Whether this is the bearer of an API key that covers every topic."""
    return set(EVERY_TOPIC) <= set(identity.grants)


class Function:
    """A registered function: its name, what it takes, and who may call it."""

    def __init__(self, method: str, function: Callable[..., Any], params: Any, permission: Permission) -> None:
        if not (0 < len(method) <= MAX_METHOD_LENGTH and method.isprintable()):
            raise ValueError(f"the name of a function is 1 to {MAX_METHOD_LENGTH} printable characters, not {method!r}")
        if isinstance(permission, str) and "." not in permission:
            raise ValueError(f"{method}: {permission!r} is no permission of Django's, such as shop.view_product")
        if not isinstance(permission, str) and not callable(permission):
            raise ValueError(f"{method}: say who may call it: ANYBODY, SIGNED_IN, a permission or a function")
        self.method = method
        self.function = function
        self.params = params
        self.permission = permission
        self._decode = msgspec.json.Decoder(params).decode
        # A structure whose fields all have defaults can do without any params.
        self._nothing = b"{}" if isinstance(params, type) and issubclass(params, msgspec.Struct) else b"null"

    def decoded(self, data: bytes) -> Any:
        """The params in JSON text. Raises CommandError 107 when they do not fit."""
        try:
            return self._decode(self._nothing if data in (b"", b"null") else data)
        except (ValueError, RecursionError) as error:
            raise CommandError(codes.BAD_REQUEST, str(error)) from error

    def allows(self, user: Any, params: Any) -> bool:
        """Whether `user` may call it with `params`. May query the database."""
        if isinstance(self.permission, str):
            return bool(user.has_perm(self.permission))
        return bool(self.permission(user, params))

    @property
    def described_permission(self) -> str:
        """Who may call it, in words, for `manage.py rpc`: a permission, or the first line of a docstring."""
        if isinstance(self.permission, str):
            return self.permission
        return (self.permission.__doc__ or "as the code decides").strip().splitlines()[0]


class Registry:
    """The registered functions of this process, by name."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def register(self, function: Function) -> None:
        """Add a function. Raises ValueError when its name is taken."""
        known = self._functions.setdefault(function.method, function)
        if known is not function:
            raise ValueError(f"{function.method} is registered already, by {known.function.__module__}")

    def unregister(self, method: str) -> None:
        """Take a function back; a test's counterpart of `register()`."""
        self._functions.pop(method, None)

    def find(self, method: str) -> Function:
        """The function called `method`. Raises CommandError 104 when there is none, 108 when no app has any."""
        if not self._functions:
            raise CommandError(codes.NOT_AVAILABLE, "no app has registered functions")
        try:
            return self._functions[method]
        except KeyError:
            raise CommandError(codes.METHOD_NOT_FOUND, f"no app has registered {method!r}") from None

    @property
    def functions(self) -> list[Function]:
        """Every function, by name."""
        return sorted(self._functions.values(), key=lambda function: function.method)


registry = Registry()


def rpc(method: str, *, params: Any = Any, permission: Permission) -> Callable[[F], F]:
    """Register a function, `async` or not, that clients may call as `method`.

    It is given a `Context` and its params, decoded as `params`: any type that msgspec can decode, such as a Struct.
    What it returns is answered as JSON. Functions that are not `async`, and permissions, run in a database thread.
    It may raise CommandError to answer with a code of its own (400 to 1999), or Django's PermissionDenied.

    Raises ValueError when the name is not valid or taken, or the permission is neither a permission nor a function.
    """

    def register(function: F) -> F:
        registry.register(Function(method, function, params, permission))
        return function

    return register


async def call(*, method: str, data: bytes, identity: Identity, client: str) -> bytes:
    """Call a function on behalf of a client with params in JSON text, or none, and return its result in JSON text.

    Raises CommandError: 104 when there is no such function, 107 when the params do not fit, 103 when the client may
    not call it, and 100 when it fails. The bearer of a key for every topic may call every function.
    """
    function = registry.find(method)
    params = function.decoded(data)
    try:
        if inspect.iscoroutinefunction(function.function):
            context = await in_database_thread(_permitted, function, params, identity, client)
            return encode_json(await function.function(context, params))
        return encode_json(await in_database_thread(_called, function, params, identity, client))
    except CommandError:
        raise
    except PermissionDenied as error:
        raise CommandError(codes.PERMISSION_DENIED, str(error)) from error
    except Exception as error:
        logger.exception("the function %s failed", method)
        raise CommandError(codes.INTERNAL) from error


def _permitted(function: Function, params: Any, identity: Identity, client: str) -> Context:
    user = load_user(identity)
    if user is None or not (acts_for_the_site(identity) or function.allows(user, params)):
        raise CommandError(codes.PERMISSION_DENIED)
    return Context(user, client, identity)


def _called(function: Function, params: Any, identity: Identity, client: str) -> Any:
    return function.function(_permitted(function, params, identity, client), params)
