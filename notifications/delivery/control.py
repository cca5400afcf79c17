"""The control plane: what any process of the hub asks of all its server processes.

A control message travels through the channel layer to the group that every switchboard is a member of, and each
performs it on its own sessions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from notifications.delivery import identity
from notifications.delivery.codes import FORCE_NO_RECONNECT, FORCE_RECONNECT, UNSUBSCRIBED_BY_SERVER, Code
from notifications.delivery.revocations import EVERYBODY, login_subject, user_subject
from notifications.events import messenger
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
    login: str | None = None,
    code: Code = FORCE_NO_RECONNECT,
) -> None:
    """Close the sessions of a user, of one client, or of one Django session (the hash of its key)."""
    _ask("disconnect", user=user, client=client, login=login, code=code.code, reason=code.reason)


def unsubscribe(*, topic: str, user: str | None = None, client: str | None = None) -> None:
    """End the subscriptions to a topic, of everybody or of one user or client."""
    _ask("unsubscribe", topic=topic, user=user, client=client)


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
        session = switchboard.sessions.get(message["client"])
        sessions = [] if session is None else [session]
    elif "user" in message:
        sessions = switchboard.sessions_of_user.get(message["user"], ())
    return [session for session in sessions if "login" not in message or session.identity.login == message["login"]]


def _disconnect(switchboard: Switchboard, message: dict[str, Any]) -> None:
    if not message.keys() & {"user", "client", "login"}:
        logger.warning("a control message to disconnect names nobody, and is ignored")
        return
    if "login" in message:
        switchboard.revocations.note(login_subject(message["login"]))
    elif "user" in message:
        switchboard.revocations.note(user_subject(message["user"]))
    for session in _chosen(switchboard, message):
        session.disconnect(Code(message["code"], message["reason"]))


def _unsubscribe(switchboard: Switchboard, message: dict[str, Any]) -> None:
    for session in _chosen(switchboard, message):
        session.unsubscribe_by_server(message["topic"], UNSUBSCRIBED_BY_SERVER)


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
                (session.identity, [found.topic for found in subscriptions.values()])
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
}
