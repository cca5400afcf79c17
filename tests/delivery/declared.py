"""Topics of every kind, for tests to which it is all the same what a topic is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from notifications.delivery.rpc import ANYBODY, Context, rpc
from notifications.delivery.rpc import registry as functions
from notifications.delivery.signals import client_message
from notifications.events import Topic, durable, window
from notifications.events.topics import registry


class Open(Topic):
    """Everybody may do anything here; nobody has to be asked."""

    asks_only_identity = True
    presence = join_leave = True
    subscribers_may = frozenset({"publish", "history", "presence"})

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True


class Kept(Open):
    pattern = "kept:<name>"
    retention = window(size=6, seconds=300)
    deltas = filterable = force_join_leave = True
    asks_only_identity = True


class Cached(Open):
    pattern = "cached:<name>"
    retention = window(size=2, seconds=300)
    recovery = "cache"
    deltas = True


class Fleeting(Open):
    pattern = "fleeting:<name>"
    deltas = filterable = True


class Asked(Open):
    """A thread is asked, and may change its mind."""

    pattern = "asked:<name>"
    retention = window(size=100, seconds=300)
    asks_only_identity = False
    allowed: ClassVar[bool] = True

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return Asked.allowed


class Ledger(Open):
    pattern = "ledger:<name>"
    retention = durable()


class Given(Topic):
    """To which the server subscribes everybody."""

    pattern = "given:<name>"
    retention = window(size=100, seconds=300)
    asks_only_identity = True
    names: ClassVar[tuple[str, ...]] = ()

    def may_subscribe(self, user: Any, *args: Any, **parts: Any) -> bool:
        return True

    def server_subscriptions(self, user: Any) -> tuple[str, ...]:
        return Given.names


class Denied(Topic):
    """For holders of a token."""

    pattern = "denied:<name>"
    retention = window(size=100, seconds=300)
    presence = join_leave = True


DECLARED = (Kept, Cached, Fleeting, Asked, Ledger, Given, Denied)
#: Their namespaces, and one that nobody declares.
KINDS = ("kept", "cached", "fleeting", "asked", "ledger", "given", "denied", "unknown")


@contextmanager
def declared() -> Iterator[None]:
    """Declare the topics, the function `fuzz.echo`, and somebody who listens to what clients send."""

    @rpc("fuzz.echo", permission=ANYBODY)
    async def echo(context: Context, params: Any) -> Any:
        return params

    def listen(data: Any, **_: Any) -> None:
        """Without this `send` would not be supported."""

    client_message.connect(listen)
    for declaration in DECLARED:
        registry.register(declaration)
    try:
        yield
    finally:
        for declaration in DECLARED:
            registry.unregister(declaration)
        client_message.disconnect(listen)
        functions.unregister("fuzz.echo")
