"""Who is believed without a query, and that nobody is who was shut out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.core.signing import Signer, b64_encode
from django.utils import timezone
from pytest_django import Settings

from notifications.delivery import passport
from notifications.delivery.auth import identity_of_cookies, login_of
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.models import Revocation
from notifications.delivery.revocations import MARGIN_SECONDS, Revocations
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events.threads import close_all, executor, in_database_thread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def switchboard(settings: Settings) -> AsyncIterator[Switchboard]:
    settings.HUB_SOCKET = ""
    yield await current_switchboard()
    await stop_current()


@pytest.fixture
async def revocations(switchboard: Switchboard) -> Revocations:
    await switchboard.revocations.refresh()
    return switchboard.revocations


async def signed_in(user: User) -> dict[str, str]:
    """The cookies of a browser in which a user has signed in."""

    def sign_in() -> str:
        session = SessionStore()
        session["_auth_user_id"] = str(user.pk)
        session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
        session["_auth_user_hash"] = user.get_session_auth_hash()
        session.create()
        return str(session.session_key)

    return {"sessionid": await in_database_thread(sign_in)}


async def with_passport(user: User) -> dict[str, str]:
    """The same cookies, with the passport that a handshake gave a while ago, so that no change is too near."""
    cookies = await signed_in(user)
    identity = await identity_of_cookies(cookies)
    earlier = time.time() - 10
    ((name, value),) = passport.set_cookie(Identity(**{**fields(identity), "verified_at": earlier}))
    assert name == b"set-cookie"
    text = value.decode().split(";")[0].removeprefix("hub_passport=")
    return {**cookies, "hub_passport": text}


def fields(identity: Identity) -> dict[str, object]:
    return {name: getattr(identity, name) for name in identity.__struct_fields__}


def no_queries_from_now() -> None:
    close_all()


def queries_were_made() -> bool:
    return bool(executor("database")._threads)


async def test_a_passport_spares_the_queries(revocations: Revocations) -> None:
    ana = await User.objects.acreate_user("ana", first_name="Ana")
    cookies = await with_passport(ana)
    no_queries_from_now()

    identity = await identity_of_cookies(cookies)

    assert (identity.user, identity.info, identity.login) == (
        str(ana.pk),
        {"name": "Ana"},
        login_of(cookies["sessionid"]),
    )
    assert not queries_were_made()


async def test_a_passport_is_given_only_by_the_database(revocations: Revocations) -> None:
    cookies = await with_passport(await User.objects.acreate_user("ana"))

    believed = await identity_of_cookies({**cookies})
    looked_up = await identity_of_cookies({"sessionid": cookies["sessionid"]})

    assert passport.set_cookie(Identity(**{**fields(believed), "verified_at": time.time() - 3_600})) == []
    assert len(passport.set_cookie(looked_up)) == 1
    assert passport.set_cookie(ANONYMOUS) == []


@pytest.mark.parametrize("spoil", ["another login", "forged", "old", "no session"])
async def test_a_passport_that_is_not_ones_own_is_worth_nothing(revocations: Revocations, spoil: str) -> None:
    ana, bob = await User.objects.acreate_user("ana"), await User.objects.acreate_user("bob")
    anas, bobs = await with_passport(ana), await signed_in(bob)
    cookies = {**bobs, "hub_passport": anas["hub_passport"]}
    expected = str(bob.pk)
    if spoil == "forged":
        cookies["hub_passport"] = cookies["hub_passport"][:-3] + "abc"
    elif spoil == "old":
        claims = [str(ana.pk), None, login_of(bobs["sessionid"]), "", time.time() - 50_000]
        signed = Signer(salt=passport._SALT).sign(b64_encode(json.dumps(claims).encode()).decode())
        cookies["hub_passport"] = signed
    elif spoil == "no session":
        del cookies["sessionid"]
        expected = ""

    identity = await identity_of_cookies(cookies)

    assert identity.user == expected


@pytest.mark.parametrize("change", ["deactivated", "deleted", "password", "logout"])
async def test_a_change_of_the_user_ends_what_was_signed_before(revocations: Revocations, change: str) -> None:
    ana = await User.objects.acreate_user("ana", password="old")
    cookies = await with_passport(ana)

    if change == "deactivated":
        ana.is_active = False
        await ana.asave()
    elif change == "deleted":
        await ana.adelete()
    elif change == "password":
        ana.set_password("new")
        await ana.asave()
    else:
        from notifications.delivery import control

        control.disconnect(login=login_of(cookies["sessionid"]))
    await asyncio.sleep(0)  # the control plane's message arrives with the next turn of the loop

    async with asyncio.timeout(5):
        while await identity_of_cookies(cookies) != ANONYMOUS:
            await asyncio.sleep(0)


async def test_a_process_that_starts_later_knows_who_was_shut_out(revocations: Revocations) -> None:
    ana = await User.objects.acreate_user("ana")
    cookies = await with_passport(ana)
    ana.is_active = False
    await ana.asave()

    await stop_current()

    assert await identity_of_cookies(cookies) == ANONYMOUS


async def test_the_bearer_of_a_token_is_believed_unless_inactive(revocations: Revocations) -> None:
    ana = await User.objects.acreate_user("ana")
    gone = await User.objects.acreate_user("gone", is_active=False)
    revocations.distrust()
    await revocations.refresh()
    await Revocation.objects.all().adelete()

    believed = {
        name: revocations.unchanged(Identity(user=user, from_token=True))
        for name, user in {"ana": str(ana.pk), "gone": str(gone.pk), "elsewhere": "customer-7"}.items()
    }

    assert believed == {"ana": True, "gone": False, "elsewhere": True}


async def test_nobody_is_believed_before_the_changes_are_known(switchboard: Switchboard) -> None:
    ana = Identity(user="1", from_token=True)

    first = switchboard.revocations.unchanged(ana)
    async with asyncio.timeout(5):
        while not switchboard.revocations.unchanged(ana):
            await asyncio.sleep(0.01)
    switchboard.revocations.distrust()

    assert (first, switchboard.revocations.unchanged(ana)) == (False, False)


async def test_a_change_of_a_group_concerns_everybody(revocations: Revocations) -> None:
    ana = await User.objects.acreate_user("ana")
    signed = Identity(user=str(ana.pk), verified_at=time.time() - 1)
    assert revocations.unchanged(signed)
    group = await Group.objects.acreate(name="editors")

    await group.adelete()
    async with asyncio.timeout(5):
        while revocations.unchanged(signed):
            await asyncio.sleep(0)

    later = Identity(user=str(ana.pk), verified_at=time.time() + MARGIN_SECONDS + 1)
    assert revocations.unchanged(later)


async def test_a_change_is_dated_within_its_transaction_or_never(revocations: Revocations) -> None:
    ana = await User.objects.acreate_user("ana")
    before = timezone.now()

    ana.first_name = "Ana"
    await ana.asave()

    (revocation,) = [found async for found in Revocation.objects.filter(subject=f"user:{ana.pk}")]
    assert before <= revocation.revoked_at <= timezone.now()
