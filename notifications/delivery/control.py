"""The control plane: what any process of the hub asks of all its server processes.

A control message travels through the channel layer to the group that every switchboard is a member of, and each
performs it on its own sessions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from notifications.delivery import identity
from notifications.delivery.codes import (
    ALREADY_SUBSCRIBED,
    EXPIRED,
    FORCE_NO_RECONNECT,
    FORCE_RECONNECT,
    UNSUBSCRIBED_BY_SERVER,
    Code,
    CommandError,
)
from notifications.delivery.identity import SubscriptionGrant
from notifications.delivery.revocations import EVERYBODY, login_subject, user_subject
from notifications.events import messenger
from notifications.events.event import Cursor
from notifications.events.messages import CONTROL_GROUP, control_message

if TYPE_CHECKING:
    from notifications.delivery.session import Session
    from notifications.delivery.switchboard import Switchboard

logger = logging.getLogger(__name__)

# With one query for their users.
JUDGED_AT_ONCE = 100


# What is asked. All may be called from any thread, and raise LogUnavailable when the layer cannot be reached.


def disconnect(
    *,
    user: str | None = None,
    client: str | None = None,
    session: str | None = None,
    login: str | None = None,
    code: Code = FORCE_NO_RECONNECT,
    keep: Collection[str] = (),
) -> None:
    """Close the sessions of a user, but for the clients in `keep`, of one client, or of one Django session (`login`,
    the hash of its key). `session` is the secret of a client on an emulated transport.
    """
    named = {"user": user, "client": client, "session": session, "login": login}
    _ask("disconnect", **named, code=code.code, reason=code.reason, keep=list(keep) or None)


def subscribe(
    *,
    topic: str,
    user: str | None = None,
    client: str | None = None,
    session: str | None = None,
    info: Any = None,
    data: Any = None,
    since: Cursor | None = None,
    expires_at: float | None = None,
) -> None:
    """Subscribe the sessions of a user, or one client, to a topic, whatever the topic's declaration says.

    `info` is what others get to know of the subscriber, `data` goes to its client, `since` sends what was published
    after it first, and `expires_at` (a Unix time) ends the subscription.
    """
    position = None if since is None else {"offset": since.offset, "epoch": since.epoch}
    named = {"user": user, "client": client, "session": session}
    _ask("subscribe", **named, topic=topic, info=info, data=data, since=position, expires_at=expires_at)


def unsubscribe(
    *,
    topic: str,
    user: str | None = None,
    client: str | None = None,
    session: str | None = None,
    code: Code = UNSUBSCRIBED_BY_SERVER,
) -> None:
    """End the subscriptions to a topic, of everybody or of one user or client."""
    named = {"user": user, "client": client, "session": session}
    _ask("unsubscribe", **named, topic=topic, code=code.code, reason=code.reason)


def refresh(
    *,
    user: str | None = None,
    client: str | None = None,
    session: str | None = None,
    expires_at: float | None = None,
    expired: bool = False,
) -> None:
    """Change when the sessions of a user, or of one client, expire (a Unix time; None: never), or let them expire."""
    _ask("refresh", user=user, client=client, session=session, expires_at=expires_at, expired=expired)


def message(*, data: Any, user: str | None = None, client: str | None = None) -> None:
    """Send something that is no event, and that nothing keeps, to the clients of a user or to one client."""
    _ask("message", user=user, client=client, data=data)


def rejudge(*, user: str | None = None, topic: str | None = None) -> None:
    """Ask every affected subscription's permission again, and end what is no longer allowed."""
    _ask("rejudge", user=user, topic=topic)


def _ask(operation: str, **arguments: Any) -> None:
    given = {name: value for name, value in arguments.items() if value is not None}
    messenger.send(CONTROL_GROUP, control_message(operation, **given))


# What is performed, on the loop of a switchboard.


def perform(switchboard: Switchboard, message: dict[str, Any]) -> None:
    """Perform a control message on the sessions of this process; unknown operations are of a newer release."""
    operation = _OPERATIONS.get(message["operation"])
    if operation is None:
        logger.info("the control operation %r is not known to this release", message["operation"])
        return
    operation(switchboard, message)


def _chosen(switchboard: Switchboard, message: dict[str, Any]) -> list[Session]:
    """The sessions that a message names; all of them when it names none."""
    sessions: Iterable[Session] = switchboard.sessions.values()
    if "client" in message:
        sessions = _one(switchboard.sessions.get(message["client"]))
    elif "session" in message:
        sessions = _one(switchboard.emulated.get(message["session"]))
    elif "user" in message:
        sessions = switchboard.sessions_of_user.get(message["user"], ())
    return [
        session
        for session in sessions
        if message.get("login", session.identity.login) == session.identity.login
        # A client that is named together with a user is that user's, or nobody's.
        and message.get("user", session.identity.user) == session.identity.user
        and session.id not in message.get("keep", ())
    ]


def _one(session: Session | None) -> list[Session]:
    return [] if session is None else [session]


def _names_somebody(message: dict[str, Any]) -> bool:
    if message.keys() & {"user", "client", "session", "login"}:
        return True
    logger.warning("a control message to %s names nobody, and is ignored", message["operation"])
    return False


def _disconnect(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if not _names_somebody(message):
        return
    if "login" in message:
        switchboard.revocations.note(login_subject(message["login"]))
    elif "user" in message and not message.keys() & {"client", "session", "keep"}:
        switchboard.revocations.note(user_subject(message["user"]))
    for session in _chosen(switchboard, message):
        session.disconnect(Code(message["code"], message["reason"]))


def _unsubscribe(switchboard: Switchboard, message: dict[str, Any]) -> None:
    code = Code(message.get("code", UNSUBSCRIBED_BY_SERVER.code), message.get("reason", UNSUBSCRIBED_BY_SERVER.reason))
    for session in _chosen(switchboard, message):
        session.unsubscribe_by_server(message["topic"], code)


def _subscribe(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if not _names_somebody(message):
        return
    for session in _chosen(switchboard, message):
        if session.connected and session.protocol.takes_subscriptions:
            session.run_for_server(_subscribe_one(session, message))


async def _subscribe_one(session: Session, message: dict[str, Any]) -> None:
    since = Cursor(**message["since"]) if "since" in message else None
    grant = SubscriptionGrant(info=message.get("info"), expires_at=message.get("expires_at"))
    try:
        recovery = await session.subscribe(message["topic"], since=since, by_server=True, join_leave=True, grant=grant)
    except CommandError as error:
        if error.code is not ALREADY_SUBSCRIBED and session.closed_with is None:
            logger.warning("a client could not be subscribed to %s: %s", message["topic"], error)
        return
    session.protocol.subscribed(session, recovery, message.get("data"))
    recovery.subscription.release()


def _refresh(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if not _names_somebody(message):
        return
    for session in _chosen(switchboard, message):
        if message["expired"]:
            session.disconnect(EXPIRED)
        elif session.connected:
            session.identity = msgspec.structs.replace(session.identity, expires_at=message.get("expires_at"))
            switchboard.watch_expiry(session)
            session.protocol.prolonged(session)


def _message(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if not _names_somebody(message):
        return
    for session in _chosen(switchboard, message):
        if session.connected:
            session.protocol.messaged(session, message.get("data"))


def _emulate(switchboard: Switchboard, message: dict[str, Any]) -> None:
    session = switchboard.emulated.get(message["session"])
    if session is not None:
        session.feed(message["data"])


def _canary(switchboard: Switchboard, message: dict[str, Any]) -> None:
    switchboard.housekeeping.canary.returned(message["sent_at"])


def _rejudge(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if "topic" not in message:
        switchboard.revocations.note(user_subject(message["user"]) if "user" in message else EVERYBODY)
    only = message.get("topic")
    sessions = [session for session in _chosen(switchboard, message) if only is None or only in session.subscriptions]
    for start in range(0, len(sessions), JUDGED_AT_ONCE):
        switchboard.spawn(_judge_again(sessions[start : start + JUDGED_AT_ONCE], only))


async def _judge_again(sessions: Sequence[Session], only: str | None = None) -> None:
    """Ask the permissions of some sessions again, and end what is no longer allowed."""
    judged = [
        {name: found for name, found in session.subscriptions.items() if only is None or name == only}
        for session in sessions
    ]
    judged_out = True
    try:
        verdicts = await identity.judge(
            [
                # What a token or the server granted, the declaration is not asked about.
                (session.identity, [found.topic for found in subscriptions.values() if found.grant is None])
                for session, subscriptions in zip(sessions, judged, strict=True)
            ]
        )
    except Exception:
        logger.exception("%d sessions could not be judged again", len(sessions))
        verdicts, judged_out = [identity.Verdict(False, [])] * len(sessions), False
    for session, subscriptions, verdict in zip(sessions, judged, verdicts, strict=True):
        if not verdict.connected:
            if judged_out:
                _found_out(session)
            session.disconnect(FORCE_RECONNECT)
        elif identity.has_ended(session.identity, revocations=session.switchboard.revocations):
            session.disconnect(FORCE_RECONNECT)  # by a logout that this process was not told of
        for name in verdict.forbidden:
            if session.subscriptions.get(name) is subscriptions[name]:
                session.unsubscribe_by_server(name, UNSUBSCRIBED_BY_SERVER)


def _found_out(session: Session) -> None:
    """Let no process believe any more what was signed for a user of whose change nobody was told."""
    switchboard, user = session.switchboard, session.identity.user
    if not user:
        return
    is_news = switchboard.revocations.unchanged(session.identity)
    switchboard.revocations.note(user_subject(user))
    if is_news:  # otherwise every process would tell what every process knows
        switchboard.spawn(switchboard.send_to_group(CONTROL_GROUP, control_message("rejudge", user=user)))


async def judge_everybody(switchboard: Switchboard, *, seconds: float = 0) -> None:
    """Judge every session of this process again, spread over so many seconds."""
    sessions = [session for session in switchboard.sessions.values() if session.connected]
    if sessions and not switchboard.revocations.trusted:
        await switchboard.revocations.refresh()  # it alone knows of logouts that this process was not told of
    for start in range(0, len(sessions), JUDGED_AT_ONCE):
        await _judge_again([session for session in sessions[start : start + JUDGED_AT_ONCE] if not session.closed_with])
        await asyncio.sleep(seconds * JUDGED_AT_ONCE / len(sessions))


_OPERATIONS: dict[str, Callable[[Switchboard, dict[str, Any]], None]] = {
    "disconnect": _disconnect,
    "unsubscribe": _unsubscribe,
    "rejudge": _rejudge,
    "subscribe": _subscribe,
    "refresh": _refresh,
    "message": _message,
    "emulate": _emulate,
    "canary": _canary,
}
