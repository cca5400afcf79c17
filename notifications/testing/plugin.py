"""Fixtures that pytest offers wherever this package is installed.

`published` is what the test published so far; `hub_client` makes clients that speak the protocol in process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import pytest

if TYPE_CHECKING:
    from notifications.events import Event
    from notifications.testing.client import HubClient


class PublishedEvents(Sequence["Event"]):
    """The events published since the test began, those that wait for a commit included.

    Compares with a list of events; see `notifications.events.Event` for what makes two events equal.
    """

    def __init__(self, recorder: list[Event]) -> None:
        self._recorder = recorder

    def _events(self) -> list[Event]:
        from notifications.events.recording import waiting_for_commit

        return [*self._recorder, *waiting_for_commit()]

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._events()[index]

    def __len__(self) -> int:
        return len(self._events())

    def __eq__(self, other: object) -> bool:
        return self._events() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._events())

    def on(self, topic: str) -> list[Event]:
        """Those published to one topic."""
        return [event for event in self._events() if event.topic == topic]


@pytest.fixture
def published() -> Iterator[PublishedEvents]:
    """What the test published so far: `assert published == [Event(topic=…, type=…, data=…)]`."""
    from notifications.events.recording import start_recording, stop_recording

    recorder = start_recording()
    yield PublishedEvents(recorder)
    stop_recording(recorder)


@pytest.fixture
async def hub_client() -> AsyncIterator[Callable[..., Awaitable[HubClient]]]:
    """Makes connected clients: `client = await hub_client(user)`, or `hub_client(token=…)`; closed when the test ends.

    With `connect=False` the command of that name is left to the test.

    The test needs the database as committed rows (`pytest.mark.django_db(transaction=True)`), because the hub
    asks it from threads of its own.
    """
    from notifications.delivery.switchboard import stop_current
    from notifications.testing.client import HubClient

    clients: list[HubClient] = []

    async def make(user: Any = None, *, token: str = "", connect: bool = True) -> HubClient:
        client = await (HubClient.connected(user, token=token) if connect else HubClient.opened(user))
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
    await stop_current()
