from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django import Settings

from workers import app


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    """A hub that is this process alone."""
    settings.HUB_SOCKET = ""


@pytest.fixture(autouse=True)
def _empty_broker() -> Iterator[None]:
    """Leave no task for the worker of another test."""
    yield
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for queue in app.amqp.queues.values():
            queue(channel).declare()
            queue(channel).purge()
