"""Requests tell the audit log who acts, and from which address."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from pytest_django import Settings

from notifications.audit.models import AuditEntry
from notifications.audit.origin import client_address, current
from notifications.audit.services import record

pytestmark = pytest.mark.django_db(transaction=True)


def act(request: HttpRequest) -> HttpResponse:
    record(action="a.b", subject=request.GET.get("subject", ""))
    return HttpResponse()


async def act_later(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    await sync_to_async(record)(action="a.b", subject=request.GET.get("subject", ""))
    return HttpResponse()


urlpatterns = [path("act/", act), path("act-later/", act_later)]


@pytest.fixture(autouse=True)
def _own_urls(settings: Settings) -> None:
    settings.ROOT_URLCONF = __name__


def noted() -> tuple[Any, str, str | None]:
    entry = AuditEntry.objects.get()
    return entry.actor, entry.actor_name, entry.address


@pytest.mark.parametrize("address", ["/act/", "/act-later/"])
def test_a_request_names_its_user_and_address(client: Client, ana: User, address: str) -> None:
    client.force_login(ana)

    client.get(address, REMOTE_ADDR="192.0.2.7")

    assert noted() == (ana, "ana", "192.0.2.7")
    assert current().name.startswith("system user ")  # the request is over


@pytest.mark.parametrize("address", ["/act/", "/act-later/"])
async def test_so_does_one_on_an_event_loop(async_client: AsyncClient, ana: User, address: str) -> None:
    await sync_to_async(async_client.force_login)(ana)

    await async_client.get(address)

    assert await sync_to_async(noted)() == (ana, "ana", "127.0.0.1")


async def test_requests_at_the_same_time_are_kept_apart(ana: User, django_user_model: type[User]) -> None:
    bob = await sync_to_async(django_user_model.objects.create_user)("bob")
    clients = {user.username: AsyncClient() for user in (ana, bob)}
    for user in (ana, bob):
        await sync_to_async(clients[user.username].force_login)(user)

    await asyncio.gather(
        *(clients[name].get("/act-later/", {"subject": name}) for name in ("ana", "bob", "ana", "bob"))
    )

    entries = await sync_to_async(list)(AuditEntry.objects.values_list("actor_name", "subject"))
    assert sorted(entries) == [("ana", "ana"), ("ana", "ana"), ("bob", "bob"), ("bob", "bob")]


def test_a_visitor_has_no_name(client: Client) -> None:
    client.get("/act/")

    assert noted() == (None, "", "127.0.0.1")


FORWARDED = "198.51.100.9, 203.0.113.5, 192.0.2.1"


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded_for", "address"),
    [
        (0, "192.0.2.7", "", "192.0.2.7"),
        (0, "192.0.2.7", FORWARDED, "192.0.2.7"),  # anybody may send the header
        (1, "192.0.2.7", FORWARDED, "192.0.2.1"),
        (2, "192.0.2.7", FORWARDED, "203.0.113.5"),
        (9, "192.0.2.7", FORWARDED, "198.51.100.9"),
        (1, "192.0.2.7", "", "192.0.2.7"),  # past the proxy
        (1, "192.0.2.7", "unknown", None),
        (1, "192.0.2.7", "x, 203.0.113.5:4711", "203.0.113.5"),
        (1, "192.0.2.7", "[2001:db8::1]:4711", "2001:db8::1"),
        (1, "192.0.2.7", "2001:DB8::1", "2001:db8::1"),
        (0, "::ffff:192.0.2.7", "", "192.0.2.7"),
        (0, "fe80::1%eth0", "", "fe80::1"),
        (0, "", "", None),  # a Unix socket
        (0, None, "", None),
    ],
)
def test_proxies_are_believed_as_far_as_the_setting_says(
    settings: Settings, proxies: int, peer: str | None, forwarded_for: str, address: str | None
) -> None:
    settings.HUB_TRUSTED_PROXIES = proxies

    assert client_address(peer, forwarded_for) == address


def test_the_address_behind_a_proxy_is_noted(client: Client, settings: Settings) -> None:
    settings.HUB_TRUSTED_PROXIES = 1

    client.get("/act/", headers={"X-Forwarded-For": "6.6.6.6, 203.0.113.5"})

    assert noted()[2] == "203.0.113.5"
