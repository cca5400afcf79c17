"""Functions that clients call by name."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.utils.translation import gettext_lazy
from pytest_django import Settings

from notifications.delivery import codes
from notifications.delivery.codes import Code, CommandError
from notifications.delivery.identity import ANONYMOUS, Identity
from notifications.delivery.rpc import ANYBODY, SIGNED_IN, Context, call, registry, rpc
from notifications.events import publish
from notifications.testing.client import HubClient
from notifications.testing.plugin import PublishedEvents

pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., Awaitable[HubClient]]


class PriceOf(msgspec.Struct):
    product: Annotated[int, msgspec.Meta(ge=1)]
    currency: str = "EUR"


class Price(msgspec.Struct):
    amount: Decimal
    currency: str


@pytest.fixture(autouse=True)
def _functions(settings: Settings) -> Iterator[None]:
    settings.HUB_SOCKET = ""
    known = {function.method for function in registry.functions}
    yield
    for function in registry.functions:
        if function.method not in known:
            registry.unregister(function.method)


@pytest.fixture
async def ana() -> User:
    return await User.objects.acreate_user("ana")


def identity_of(user: User) -> Identity:
    return Identity(user=str(user.pk))


async def called(method: str, data: bytes = b"", identity: Identity = ANONYMOUS) -> Any:
    """What a function answers."""
    return msgspec.json.decode(await call(method=method, data=data, identity=identity, client="c"))


async def refused(method: str, data: bytes = b"", identity: Identity = ANONYMOUS) -> tuple[Code, str]:
    """The error with which a function answers."""
    with pytest.raises(CommandError) as error:
        await call(method=method, data=data, identity=identity, client="c")
    return error.value.code, error.value.detail


async def test_a_client_calls_a_function(hub_client: Connect, ana: User) -> None:
    @rpc("shop.price", params=PriceOf, permission=SIGNED_IN)
    def price(context: Context, params: PriceOf) -> Price:
        return Price(Decimal("9.90") * params.product, f"{params.currency} for {context.user.username}")

    client = await hub_client(ana)

    for number, product in ((7, 2), (8, 0)):
        command = {"id": number, "rpc": {"method": "shop.price", "data": {"product": product}}}
        client.session.feed(msgspec.json.encode(command).decode())

    answers = [await asyncio.wait_for(client.transport.messages.get(), 5) for _ in range(2)]
    assert answers == [
        {"id": 7, "rpc": {"data": {"amount": "19.80", "currency": "EUR for ana"}}},
        {"id": 8, "error": {"code": 107, "message": "bad request"}},
    ]


async def test_a_function_knows_who_calls(ana: User) -> None:
    seen: list[Context] = []

    @rpc("who", permission=ANYBODY)
    async def who(context: Context, params: Any) -> None:
        seen.append(context)

    assert await called("who", identity=identity_of(ana)) is None
    assert await called("who") is None

    assert seen[0] == (ana, "c", identity_of(ana))
    assert seen[1].user.is_anonymous


async def test_functions_run_where_they_may_block(published: PublishedEvents) -> None:
    threads: dict[str, threading.Thread] = {}

    @rpc("sync", permission=ANYBODY)
    def sync(context: Context, params: Any) -> int:
        threads["sync"] = threading.current_thread()
        publish("open:1", "message", 1)
        return User.objects.count()

    @rpc("async", permission=lambda user, params: threads.update(judge=threading.current_thread()) is None)
    async def asynchronous(context: Context, params: Any) -> int:
        threads["async"] = threading.current_thread()
        await asyncio.sleep(0)
        return await User.objects.acount()

    assert await called("sync") == 0
    assert await called("async") == 0

    assert threads["async"] is threading.current_thread()
    assert all(threads[name].name.startswith("hub-database") for name in ("sync", "judge"))
    assert [event.data for event in published] == [1]


async def test_there_are_no_calls_where_nothing_is_registered() -> None:
    assert await refused("shop.price") == (codes.NOT_AVAILABLE, "no app has registered functions")


async def test_nobody_calls_what_is_not_registered() -> None:
    @rpc("shop.stock", permission=ANYBODY)
    def stock(context: Context, params: Any) -> int:
        return 1

    assert await refused("shop.price") == (codes.METHOD_NOT_FOUND, "no app has registered 'shop.price'")
    assert await refused("") == (codes.METHOD_NOT_FOUND, "no app has registered ''")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"product": "x"}', "Expected `int`, got `str` - at `$.product`"),
        (b'{"product": 0}', "Expected `int` >= 1 - at `$.product`"),
        (b"{}", "Object missing required field `product`"),
        (b"", "Object missing required field `product`"),
        (b"null", "Object missing required field `product`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{", "Input data was truncated"),
        (b'{"more": ' + b"[" * 100_000, "maximum recursion depth exceeded while deserializing an object"),
    ],
)
async def test_params_have_to_fit(data: bytes, sentence: str) -> None:
    calls: list[PriceOf] = []
    rpc("shop.price", params=PriceOf, permission=ANYBODY)(lambda context, params: calls.append(params))

    assert await refused("shop.price", data) == (codes.BAD_REQUEST, sentence)
    assert calls == []


@pytest.mark.parametrize(
    ("params", "data", "seen"),
    [
        (Any, b"", None),
        (Any, b'{"a": [1]}', {"a": [1]}),
        (list[int], b"[1, 2]", [1, 2]),
        (msgspec.defstruct("Page", [("number", int, 1)]), b"", {"number": 1}),
        (msgspec.defstruct("Page", [("number", int, 1)]), b"null", {"number": 1}),
    ],
)
async def test_params_are_what_was_declared(params: Any, data: bytes, seen: object) -> None:
    rpc("echo", params=params, permission=ANYBODY)(lambda context, params: params)

    assert await called("echo", data) == seen


async def test_a_permission_of_django_is_asked(ana: User) -> None:
    rpc("groups", permission="auth.view_group")(lambda context, params: Group.objects.count())
    assert await refused("groups") == (codes.PERMISSION_DENIED, "")
    assert await refused("groups", identity=identity_of(ana)) == (codes.PERMISSION_DENIED, "")

    await ana.user_permissions.aadd(await Permission.objects.aget(codename="view_group"))

    assert await called("groups", identity=identity_of(ana)) == 0


async def test_a_function_decides_by_user_and_params(ana: User) -> None:
    calls: list[int] = []
    rpc("own", params=int, permission=lambda user, params: params == user.pk)(
        lambda context, params: calls.append(params)
    )

    assert await called("own", str(ana.pk).encode(), identity_of(ana)) is None
    assert await refused("own", b"0", identity_of(ana)) == (codes.PERMISSION_DENIED, "")
    assert calls == [ana.pk]


async def test_visitors_call_what_is_for_anybody_only() -> None:
    rpc("open", permission=ANYBODY)(lambda context, params: 1)
    rpc("closed", permission=SIGNED_IN)(lambda context, params: 2)

    assert await called("open") == 1
    assert await refused("closed") == (codes.PERMISSION_DENIED, "")
    assert await called("closed", identity=Identity(user="of another site", from_token=True)) == 2


async def test_who_is_deactivated_calls_nothing(ana: User) -> None:
    rpc("open", permission=ANYBODY)(lambda context, params: 1)
    await User.objects.filter(pk=ana.pk).aupdate(is_active=False)

    assert await refused("open", identity=identity_of(ana)) == (codes.PERMISSION_DENIED, "")


async def test_a_key_for_every_topic_calls_everything() -> None:
    rpc("closed", permission="auth.view_group")(lambda context, params: context.user.is_anonymous)

    assert await called("closed", identity=Identity(grants=("open:*", "*"))) is True
    assert await refused("closed", identity=Identity(grants=("open:*",))) == (codes.PERMISSION_DENIED, "")


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (CommandError(Code(1234, "sold out"), "no. 7"), (Code(1234, "sold out"), "no. 7")),
        (PermissionDenied("not yours"), (codes.PERMISSION_DENIED, "not yours")),
        (KeyError("secret"), (codes.INTERNAL, "")),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_function_raises_is_an_error(
    raised: Exception, error: tuple[Code, str], asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(context: Context, params: Any) -> None:
        raise raised

    async def fail_later(context: Context, params: Any) -> None:
        raise raised

    rpc("fails", permission=ANYBODY)(fail_later if asynchronous else fail)

    assert await refused("fails") == error
    assert ("the function fails failed" in caplog.text) is (error[0] is codes.INTERNAL)


async def test_a_permission_that_fails_lets_nobody_through() -> None:
    calls: list[Any] = []
    rpc("broken", permission=lambda user, params: user.no_such_attribute)(lambda context, params: calls.append(1))

    assert await refused("broken") == (codes.INTERNAL, "")
    assert calls == []


async def test_results_are_json() -> None:
    rpc("lazy", permission=ANYBODY)(lambda context, params: {"text": gettext_lazy("Yes")})
    rpc("object", permission=ANYBODY)(lambda context, params: object())

    assert await called("lazy") == {"text": "Yes"}
    assert await refused("object") == (codes.INTERNAL, "")


@pytest.mark.parametrize("permission", [None, "", "staff", 1])
def test_a_function_says_who_may_call_it(permission: Any) -> None:
    with pytest.raises(ValueError, match=r"^shop\.price: "):
        rpc("shop.price", permission=permission)(lambda context, params: None)

    assert "shop.price" not in [function.method for function in registry.functions]


@pytest.mark.parametrize("method", ["", "a\nb", "x" * 256])
def test_names_of_functions_can_be_read(method: str) -> None:
    with pytest.raises(ValueError, match="the name of a function"):
        rpc(method, permission=ANYBODY)(lambda context, params: None)


def test_a_name_is_taken_once() -> None:
    rpc("shop.price", permission=ANYBODY)(lambda context, params: 1)

    with pytest.raises(ValueError, match=r"shop\.price is registered already, by tests\.delivery\.test_rpc"):
        rpc("shop.price", permission=ANYBODY)(lambda context, params: 2)


async def test_functions_of_apps_are_found(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    app = tmp_path / "shop_with_functions"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "rpc.py").write_text(
        "from notifications.delivery.rpc import ANYBODY, rpc\n\n"
        '@rpc("shop.stock", params=int, permission=ANYBODY)\n'
        "def stock(context, params):\n"
        '    """How many there are."""\n'
        "    return params * 10\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # An app of the admin's makes a new one, without any models, whenever apps are loaded.
    for module in (admin, admin.sites):
        monkeypatch.setattr(module, "site", admin.site)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop_with_functions"]

    try:
        assert await called("shop.stock", b"4") == 40
        output = StringIO()
        call_command("rpc", stdout=output)
    finally:
        sys.modules.pop("shop_with_functions.rpc", None)
        sys.modules.pop("shop_with_functions", None)

    head, *rows = output.getvalue().splitlines()
    assert head.split("  ")[0] == "FUNCTION"
    (row,) = [row for row in rows if row.startswith("shop.stock")]
    assert row.split(None, 3) == ["shop.stock", "int", "anybody", "How many there are."]
