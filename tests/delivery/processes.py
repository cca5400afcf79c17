"""Several server processes of one hub, inside the process of a test."""

from __future__ import annotations

from collections.abc import Iterable

from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.roster import LiveSession
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard
from notifications.testing.client import HubClient, MemoryTransport


async def connected(switchboard: Switchboard, identity: Identity = ANONYMOUS) -> HubClient:
    """A client of one of the processes."""
    transport = MemoryTransport()
    session = Session(switchboard, CENTRIFUGE, transport, identity)
    session.opened()
    client = HubClient(session, transport)
    await client.command("connect")
    return client


async def told(*switchboards: Switchboard) -> None:
    """Let processes tell the registry of themselves, as each does once a second."""
    for switchboard in switchboards:
        await switchboard.housekeeping.renew_lease()


def ids(sessions: Iterable[LiveSession]) -> set[str]:
    """The ids of sessions."""
    return {session.id for session in sessions}
