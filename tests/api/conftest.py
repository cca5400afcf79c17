from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from pytest_django import Settings

from notifications.api.asgi import api_application

KEY = "the key of the environment"


@pytest.fixture(autouse=True)
def _environment(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_API_KEYS = [KEY]


def client_of(application: Callable[..., object], **options: object) -> httpx.AsyncClient:
    """A client of an ASGI application in this process."""
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://hub.test", **options)  # type: ignore[arg-type]


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with the key of the environment."""
    async with client_of(api_application, headers={"X-API-Key": KEY}) as client:
        yield client


@pytest.fixture
async def stranger() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API without a key."""
    async with client_of(api_application) as client:
        yield client
