"""Who acts, and from which address: what the present request says, for services that know nothing of requests."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from notifications.events import conf


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an act comes from.

    `user` returns the Django user, a visitor's AnonymousUser, or None, and is called when somebody wants to know;
    `name` tells who it is where that is no user; `address` is the client's.
    """

    user: Callable[[], Any] = lambda: None
    name: str = ""
    address: str | None = None


_current: ContextVar[Origin | None] = ContextVar("hub_audit_origin", default=None)


def current() -> Origin:
    """The origin of what is being done now. Without a request it is the account of the operating system."""
    return _current.get() or Origin(name=f"system user {_system_user()}")


@contextmanager
def acting(origin: Origin) -> Iterator[None]:
    """Whatever is done within comes from `origin`."""
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)


def client_address(peer: str | None, forwarded_for: str) -> str | None:
    """The IP address of a client, or None if it is not known.

    `peer` is who opened the connection, `forwarded_for` the header `X-Forwarded-For`. Of that only as many entries
    count, from the right, as there are proxies (`HUB_TRUSTED_PROXIES`): the others are what the client says.
    """
    proxies: int = conf.get("HUB_TRUSTED_PROXIES")
    hops = [hop.strip() for hop in forwarded_for.split(",") if hop.strip()] if proxies > 0 else []
    return _ip_address(hops[-min(proxies, len(hops))] if hops else peer or "")


def _ip_address(text: str) -> str | None:
    """The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`, as databases take it."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _system_user() -> str:
    """The account that runs this process: not what the environment says, which anybody may set."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # no Unix, or a container whose user has no name
        return str(getattr(os, "getuid", lambda: "unknown")())
