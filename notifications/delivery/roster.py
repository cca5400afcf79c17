"""The roster: which clients are connected to a server process, as the registry is told of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from notifications.delivery.identity import Identity
    from notifications.delivery.session import Session

# From so many changes on that could not be told, telling all anew is no more work than remembering them.
MOST_CHANGES = 50_000
_MAX_NAME = 100
_MAX_AGENT = 60


class LiveSession(msgspec.Struct, frozen=True, kw_only=True):
    """One connected client, as far as the registry was told: within a second of how things are.

    `user` is the user's id or "" for a visitor, `name` what others may call them, `address` and `agent` what is known
    of the client, "" where nothing is; `opened_at` is a Unix time, 0 where it is not known. `credential` says with what
    it signed in: "login" (a Django session), "token", "key" (of the HTTP API) or "" for a visitor; `login` names the
    Django session in the hub. `server` is the name of the process that it is connected to.
    """

    id: str
    user: str = ""
    name: str = ""
    protocol: str = ""
    address: str = ""
    agent: str = ""
    opened_at: float = 0.0
    subscriptions: int = 0
    credential: str = ""
    login: str = ""
    server: str = ""


class Changes(NamedTuple):
    """The ids of sessions that were opened, changed or closed; `anew` says to forget what was told before."""

    anew: bool
    ids: list[str]


class Roster:
    """The sessions of one server process. What is told of one is made when it is told, and not kept."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._changed: set[str] = set()
        self._anew = False

    def changed(self, session: Session) -> None:
        """A session was opened or closed, or something of it is different."""
        if self._anew:
            return
        self._changed.add(session.id)
        if len(self._changed) > MOST_CHANGES:
            self.tell_anew()

    def tell_anew(self) -> None:
        """What was told may be lost: tell of all sessions again."""
        self._anew = True
        self._changed = set()

    def take_changes(self) -> Changes:
        """What has changed since the last call."""
        changes = Changes(self._anew, list(self._sessions if self._anew else self._changed))
        self._anew, self._changed = False, set()
        return changes

    def entries(self, ids: Iterable[str]) -> dict[str, LiveSession | None]:
        """What is known of some sessions now, None for those that are closed."""
        found = {id: self._sessions.get(id) for id in ids}
        return {id: None if session is None else _entry(session) for id, session in found.items()}

    def everybody(self) -> list[LiveSession]:
        """What is known of all sessions now; may be called from any thread."""
        return [_entry(session) for session in list(self._sessions.values())]


def _entry(session: Session) -> LiveSession:
    identity = session.identity
    info = identity.info if isinstance(identity.info, dict) else {}
    return LiveSession(
        id=session.id,
        user=identity.user,
        name=str(info.get("name") or identity.user)[:_MAX_NAME],
        protocol=session.protocol.name,
        address=getattr(session, "address", ""),
        agent=getattr(session, "agent", ""),
        opened_at=getattr(session, "opened_at", 0.0),
        subscriptions=len(session.subscriptions),
        credential=_credential(identity),
        login="" if identity.grants else identity.login,
    )


def _credential(identity: Identity) -> str:
    if identity.grants:
        return "key"
    if identity.from_token:
        return "token"
    return "login" if identity.user else ""


# In the order in which they are looked for: most browsers name others besides themselves.
_BROWSERS = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Version", "Safari"))
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


@functools.lru_cache(maxsize=1_024)
def short_agent(header: str) -> str:
    """A `User-Agent` in a few words, such as `Firefox 140 on Linux`; the same object for the same header."""
    if not header.startswith("Mozilla/"):
        return header.split(" ", 1)[0][:_MAX_AGENT]
    system = next((name for mark, name in _SYSTEMS if mark in header), "")
    for mark, name in _BROWSERS:
        if found := re.search(rf"\b{mark}\w*/(\d+)", header):
            return f"{name} {found[1]} on {system}" if system else f"{name} {found[1]}"
    return system
