from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from pytest_django import Settings

from notifications.api.asgi import api_application
from notifications.delivery.rpc import SIGNED_IN, Context, registry, rpc

KEY = "the key of the environment"


@pytest.fixture(autouse=True)
def _environment(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    settings.HUB_API_KEYS = [KEY]


def client_of(application: Callable[..., object], **options: object) -> httpx.AsyncClient:
    """A client of an ASGI application in this process."""
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://hub.test", **options)  # type: ignore[arg-type]


async def call(api: httpx.AsyncClient, method: str, **request: Any) -> Any:
    """The answer of a method, which is 200 whether it succeeds or not."""
    answer = await api.post(f"/api/{method}", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


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


@pytest.fixture
def price() -> Iterator[str]:
    """The name of a function that tells the price of a product to users who are signed in."""

    @rpc("shop.price", params=dict[str, int], permission=SIGNED_IN)
    def price(context: Context, params: dict[str, int]) -> dict[str, object]:
        return {"price": params["product"] * 100, "user": context.user.get_username(), "client": context.client}

    yield "shop.price"
    registry.unregister("shop.price")
