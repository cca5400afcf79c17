"""Who is believed without a query, and that nobody is who was shut out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session as DjangoSession
from django.core.signing import Signer, b64_encode
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from notifications.delivery import control, passport, revocation
from notifications.delivery.auth import identity_of_cookies, login_of
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.models import Revocation
from notifications.delivery.protocols.centrifuge import CENTRIFUGE
from notifications.delivery.revocations import MARGIN_SECONDS, Revocations, login_subject, user_subject
from notifications.delivery.session import Session
from notifications.delivery.switchboard import Switchboard, current_switchboard, stop_current
from notifications.events.threads import close_all, executor, in_database_thread
from notifications.testing.client import MemoryTransport

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

    assert passport.set_cookie(believed) == []
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
        claims = [str(ana.pk), None, login_of(bobs["sessionid"]), "", time.time() - 50_000, time.time() - 6_800]
        signed = Signer(salt=passport._SALT).sign(b64_encode(json.dumps(claims).encode()).decode())
        cookies["hub_passport"] = signed
    elif spoil == "no session":
        del cookies["sessionid"]
        expected = ""

    identity = await identity_of_cookies(cookies)

    assert identity.user == expected


@pytest.mark.parametrize(
    "change", ["deactivated", "deleted", "password", "logout", "session deleted", "session flushed"]
)
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
    elif change == "session deleted":
        await DjangoSession.objects.all().adelete()
    elif change == "session flushed":
        await in_database_thread(SessionStore(cookies["sessionid"]).flush)
    else:
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


async def connected(switchboard: Switchboard, identity: Identity) -> tuple[Session, MemoryTransport]:
    """A session of that identity, once its connect was answered or it was closed."""
    transport = MemoryTransport()
    session = Session(switchboard, CENTRIFUGE, transport, identity)
    session.opened()
    session.feed('{"id":1,"connect":{}}')
    async with asyncio.timeout(5):
        while not session.connected and not transport.closed.done():
            await asyncio.sleep(0)
    return session, transport


async def test_a_passport_is_good_for_no_longer_than_the_session_that_it_names(
    revocations: Revocations, settings: Settings
) -> None:
    settings.SESSION_COOKIE_AGE = 300
    identity = await identity_of_cookies(await signed_in(await User.objects.acreate_user("ana")))

    ((_, value),) = passport.set_cookie(identity)
    expired = Identity(**{**fields(identity), "login_until": time.time() - 1})

    assert {"Max-Age=300", "Path=/", "HttpOnly", "SameSite=Lax"} <= set(value.decode().split("; "))
    assert passport.set_cookie(expired) == []


async def test_a_change_that_was_committed_late_is_dated_anew(
    revocations: Revocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "MARGIN_SECONDS", 0)
    ana = await User.objects.acreate_user("ana")

    def change() -> datetime:
        with transaction.atomic():
            ana.save()
            return timezone.now()

    signed_meanwhile = await in_database_thread(change)

    assert [found.revoked_at > signed_meanwhile async for found in Revocation.objects.all()] == [True]


async def test_what_was_noted_later_than_the_database_says_stays_noted(revocations: Revocations) -> None:
    await Revocation.objects.acreate(subject="user:7", revoked_at=timezone.now() - timedelta(minutes=5))
    signed_meanwhile = Identity(user="7", verified_at=time.time() - 2 * MARGIN_SECONDS)

    revocations.note(user_subject("7"))
    await revocations.refresh()

    assert not revocations.unchanged(signed_meanwhile)


async def test_what_is_missed_while_the_changes_are_read_is_read_again(revocations: Revocations) -> None:
    reading = asyncio.create_task(revocations.refresh())
    await asyncio.sleep(0)

    revocations.distrust()
    await reading

    assert not revocations.unchanged(Identity(user="1", from_token=True))


async def test_a_storm_of_connects_reads_the_changes_once(switchboard: Switchboard) -> None:
    before = set(switchboard._tasks)

    for _ in range(50):
        switchboard.revocations.unchanged(Identity(user="1", from_token=True))

    assert len(switchboard._tasks - before) == 1


@pytest.mark.parametrize("credential", ["passport", "token"])
async def test_whoever_was_judged_out_is_believed_no_more(switchboard: Switchboard, credential: str) -> None:
    """Nobody tells of what `QuerySet.update()` changes: the regular judgement finds out."""
    await switchboard.revocations.refresh()
    ana = await User.objects.acreate_user("ana")
    identity = Identity(user=str(ana.pk), from_token=True)
    if credential == "passport":
        identity = await identity_of_cookies(await with_passport(ana))
    _, transport = await connected(switchboard, identity)

    await User.objects.filter(pk=ana.pk).aupdate(is_active=False)
    await control.judge_everybody(switchboard)
    await switchboard.revocations.refresh()
    again, _ = await connected(switchboard, identity)

    assert transport.closed.result().code == 3011
    assert not again.connected


async def test_what_one_process_finds_out_the_others_are_told(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    ana = await User.objects.acreate_user("ana")
    identity = Identity(user=str(ana.pk), from_token=True)
    one, other = Switchboard(), Switchboard()
    for switchboard in (one, other):
        await switchboard.start()
        await switchboard.revocations.refresh()
    try:
        await connected(one, identity)
        await User.objects.filter(pk=ana.pk).aupdate(is_active=False)
        assert other.revocations.unchanged(identity)

        await control.judge_everybody(one)

        async with asyncio.timeout(5):
            while other.revocations.unchanged(identity):
                await asyncio.sleep(0)
    finally:
        for switchboard in (one, other):
            await switchboard.stop()


async def test_a_logout_that_nobody_told_of_ends_the_sockets(switchboard: Switchboard) -> None:
    identity = await identity_of_cookies(await signed_in(await User.objects.acreate_user("ana")))
    _, transport = await connected(switchboard, identity)
    await Revocation.objects.acreate(subject=login_subject(identity.login))

    switchboard.revocations.distrust()
    await control.judge_everybody(switchboard)

    assert transport.closed.result().code == 3011


async def test_a_logout_during_the_handshake_is_not_missed(switchboard: Switchboard) -> None:
    cookies = await signed_in(await User.objects.acreate_user("ana"))
    identity = await identity_of_cookies(cookies)
    asking = asyncio.create_task(identity_of_cookies(cookies))
    await asyncio.sleep(0)

    switchboard.revocations.note(login_subject(identity.login))
    session, _ = await connected(switchboard, identity)

    assert await asking == ANONYMOUS
    assert not session.connected


async def test_sockets_of_a_session_that_gets_another_key_may_come_back_with_it(switchboard: Switchboard) -> None:
    cookies = await signed_in(await User.objects.acreate_user("ana"))
    identity = await identity_of_cookies(cookies)
    _, transport = await connected(switchboard, identity)

    def cycle() -> str:
        session = SessionStore(cookies["sessionid"])
        session.cycle_key()
        return str(session.session_key)

    key = await in_database_thread(cycle)

    assert (await asyncio.wait_for(transport.closed, 5)).code == 3011
    assert (await identity_of_cookies({"sessionid": key})).user == identity.user
