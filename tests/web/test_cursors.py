"""The cursors that a view takes for its page, and how they get into the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import Context, RequestContext, Template
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.generic import DetailView, TemplateView
from pytest_django import Settings

from notifications.events import Cursor, apublish, publish, user_topic
from notifications.events.selectors import history, positions
from notifications.web.cursors import CursorsMixin, with_cursors
from tests.servers import RedisServer, free_port, redis_server_binary, required

pytestmark = pytest.mark.django_db(transaction=True)

TOPICS = ("open:{number}", "ledger:{number}")


def usernames() -> list[str]:
    return list(User.objects.values_list("username", flat=True))


def answer(request: HttpRequest) -> HttpResponse:
    """The cursors as JSON."""
    cursors = request.hub_cursors  # type: ignore[attr-defined]
    found = {name: None if cursor is None else [cursor.offset, cursor.epoch] for name, cursor in cursors.items()}
    return JsonResponse(found)


def busy(request: HttpRequest, number: int) -> HttpResponse:
    """A view in whose time something is published: before its first query, and after its last one."""
    publish(f"open:{number}", "order.shipped", "before the query")
    publish(f"ledger:{number}", "order.shipped", "before the query")
    usernames()
    publish(f"open:{number}", "order.shipped", "after the query")
    publish(f"ledger:{number}", "order.shipped", "after the query")
    return answer(request)


async def abusy(request: HttpRequest, number: int) -> HttpResponse:
    """The same on an event loop."""
    await apublish(f"open:{number}", "order.shipped", "before the query")
    await apublish(f"ledger:{number}", "order.shipped", "before the query")
    await sync_to_async(usernames)()
    await apublish(f"open:{number}", "order.shipped", "after the query")
    await apublish(f"ledger:{number}", "order.shipped", "after the query")
    return answer(request)


@with_cursors(*TOPICS)
def function(request: HttpRequest, number: int) -> HttpResponse:
    return busy(request, number)


@with_cursors(*TOPICS)
async def coroutine(request: HttpRequest, number: int) -> HttpResponse:
    return await abusy(request, number)


class Mixed(CursorsMixin, View):
    cursor_topics = TOPICS

    def get(self, request: HttpRequest, number: int) -> HttpResponse:
        return busy(request, number)


class MixedCoroutine(CursorsMixin, View):
    cursor_topics = TOPICS

    async def get(self, request: HttpRequest, number: int) -> HttpResponse:
        return await abusy(request, number)


@method_decorator(with_cursors(*TOPICS), name="dispatch")
class Decorated(View):
    def get(self, request: HttpRequest, number: int) -> HttpResponse:
        return busy(request, number)


@method_decorator(with_cursors(*TOPICS), name="dispatch")
class DecoratedCoroutine(View):
    async def get(self, request: HttpRequest, number: int) -> HttpResponse:
        return await abusy(request, number)


class DecoratedHandler(View):
    @method_decorator(with_cursors(*TOPICS))
    async def get(self, request: HttpRequest, number: int) -> HttpResponse:
        return await abusy(request, number)


class UserPage(CursorsMixin, DetailView):
    """As the query of a generic view, with a name from the URL that needs no other words."""

    model = User
    cursor_topics = ["ledger:{pk}"]

    def get_object(self, queryset: Any = None) -> User:
        found = super().get_object(queryset)
        publish(f"ledger:{found.pk}", "user.renamed")
        return found

    def render_to_response(self, context: dict[str, Any], **kwargs: Any) -> Any:
        return answer(self.request)


VIEWS: dict[str, Any] = {
    "function": function,
    "coroutine": coroutine,
    "mixed": Mixed.as_view(),
    "mixed-coroutine": MixedCoroutine.as_view(),
    "decorated": Decorated.as_view(),
    "decorated-coroutine": DecoratedCoroutine.as_view(),
    "decorated-handler": DecoratedHandler.as_view(),
    "around-a-class": with_cursors(*TOPICS)(Mixed.as_view()),
    "around-a-coroutine-class": with_cursors(*TOPICS)(MixedCoroutine.as_view()),
}


def of_the_request(request: HttpRequest) -> Iterable[str]:
    return [user_topic(request.user), f"open:{request.GET['open']}"]


def personal(request: HttpRequest) -> str:
    return user_topic(request.user)


@with_cursors(personal, of_the_request)
def asked(request: HttpRequest) -> HttpResponse:
    return answer(request)


@with_cursors(personal, of_the_request)
async def aasked(request: HttpRequest) -> HttpResponse:
    return answer(request)


PAGE = "{% load hub %}<head>{% hub_script %}</head>"
BARE = "{% load hub %}{% hub_cursors %}"


@with_cursors("open:page", "ledger:page")
def page(request: HttpRequest) -> HttpResponse:
    usernames()
    return HttpResponse(Template(request.GET["template"]).render(RequestContext(request)))


@with_cursors("chat:{room}")
def room(request: HttpRequest, room: str) -> HttpResponse:
    return answer(request)


@with_cursors("open:{name}")
def named(request: HttpRequest, name: str) -> HttpResponse:
    return answer(request)


urlpatterns = [
    *(path(f"{name}/<int:number>/", view) for name, view in VIEWS.items()),
    path("users/<int:pk>/", UserPage.as_view()),
    path("asked/", asked),
    path("aasked/", aasked),
    path("page/", page),
    path("room/<str:room>/", room),
    path("any/<str:name>/", named),
    path("", include("hub.urls")),
]


@pytest.fixture(autouse=True)
def _these_pages(settings: Settings) -> None:
    settings.HUB_SOCKET = ""
    settings.ROOT_URLCONF = __name__


def cursors_in(response: HttpResponse) -> dict[str, Cursor | None]:
    assert response.status_code == 200, response.content
    found = json.loads(response.content)
    return {name: None if cursor is None else Cursor(*cursor) for name, cursor in found.items()}


def missed(cursors: dict[str, Cursor | None]) -> dict[str, list[Any]]:
    """What each topic has after the page's cursor."""
    return {name: [event.data for event in history(name, since=cursor)[0]] for name, cursor in cursors.items()}


BOTH = ["before the query", "after the query"]


@pytest.mark.parametrize("view", VIEWS)
def test_the_positions_are_those_before_the_view(client: Client, view: str) -> None:
    for _ in range(3):
        publish("open:7", "order.paid")
    publish("ledger:7", "order.paid")
    before = positions(["open:7", "ledger:7"])

    cursors = cursors_in(client.get(f"/{view}/7/"))

    assert cursors == before
    assert {name: cursor.offset for name, cursor in cursors.items() if cursor} == {"open:7": 3, "ledger:7": 1}
    assert missed(cursors) == {"open:7": BOTH, "ledger:7": BOTH}


@pytest.mark.parametrize("view", VIEWS)
async def test_so_they_are_on_an_event_loop(view: str) -> None:
    for _ in range(3):
        await apublish("open:7", "order.paid")
    await apublish("ledger:7", "order.paid")
    before = await sync_to_async(positions)(["open:7", "ledger:7"])

    cursors = cursors_in(await AsyncClient().get(f"/{view}/7/"))

    assert cursors == before
    assert await sync_to_async(missed)(cursors) == {"open:7": BOTH, "ledger:7": BOTH}


def test_a_generic_view_has_the_position_from_before_its_object_was_read(client: Client) -> None:
    user = User.objects.create(username="ana")
    before = positions([f"ledger:{user.pk}"])

    cursors = cursors_in(client.get(f"/users/{user.pk}/"))

    assert cursors == before
    assert len(history(f"ledger:{user.pk}", since=cursors[f"ledger:{user.pk}"])[0]) == 1


@pytest.mark.parametrize("address", ["/asked/", "/aasked/"])
def test_a_function_of_the_request_names_topics(client: Client, address: str) -> None:
    user = User.objects.create(username="ana")
    client.force_login(user)
    publish(user_topic(user), "export.ready")

    cursors = cursors_in(client.get(address, {"open": "{7}"}))

    assert cursors == positions([user_topic(user), "open:{7}"])
    assert cursors[user_topic(user)].offset == 1  # type: ignore[union-attr]


def test_any_number_of_topics_is_one_question(rf: RequestFactory) -> None:
    def queries_for(count: int) -> int:
        view = with_cursors(*(f"ledger:{number}" for number in range(count)))(answer)
        with CaptureQueriesContext(connection) as captured:
            assert len(cursors_in(view(rf.get("/")))) == count
        return len(captured)

    queries_for(1)  # begins the epoch of the database

    assert queries_for(30) == queries_for(1)


def test_of_two_decorators_the_first_to_ask_counts(rf: RequestFactory) -> None:
    @with_cursors("open:1", "open:2")
    def inner(request: HttpRequest) -> HttpResponse:
        return answer(request)

    @with_cursors("open:1")
    def outer(request: HttpRequest) -> HttpResponse:
        publish("open:1", "order.paid")
        return inner(request)

    cursors = cursors_in(outer(rf.get("/")))

    assert {name: cursor.offset for name, cursor in cursors.items() if cursor} == {"open:1": 0, "open:2": 0}


def test_a_method_that_the_view_does_not_have_is_refused_all_the_same(client: Client) -> None:
    for view in ("mixed", "mixed-coroutine", "decorated", "decorated-coroutine"):
        assert client.post(f"/{view}/7/").status_code == 405


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("nowhere:7", "no declaration matches the topic 'nowhere:7'"),
        ("nowhere:{number}", "no declaration matches the topic 'nowhere:7'"),
        (lambda request: "nowhere:7", "no declaration matches the topic 'nowhere:7'"),
        ("fleeting:7", "'fleeting:7' keeps no events"),
        ("open:{order}", "'open:{order}' cannot be filled in from the URL, which has number"),
        ("open:{}", "'open:{}' cannot be filled in"),
        ("open:{", "'open:{' cannot be filled in"),
    ],
)
async def test_a_mistake_says_what_it_is(rf: RequestFactory, topic: Any, words: str) -> None:
    def view(request: HttpRequest, number: int) -> HttpResponse:
        raise AssertionError("the view does not run")

    with pytest.raises(ImproperlyConfigured, match=re.escape(words)):
        await sync_to_async(with_cursors(topic)(view))(rf.get("/"), number=7)
    with pytest.raises(ImproperlyConfigured, match=re.escape(words)):
        await with_cursors(topic)(view)(rf.get("/"), number=7)


def test_so_does_one_that_names_no_topic(rf: RequestFactory) -> None:
    class Forgotten(CursorsMixin, TemplateView):
        pass

    class NotAList(CursorsMixin, TemplateView):
        cursor_topics = "open:7"

    with pytest.raises(ImproperlyConfigured, match="no topic"):
        with_cursors()
    for view in (Forgotten, NotAList):
        with pytest.raises(ImproperlyConfigured, match=f"{view.__name__}.cursor_topics"):
            view.as_view()(rf.get("/"))


def test_what_a_visitor_wrote_into_the_address_is_no_mistake_of_the_site(client: Client) -> None:
    assert client.get(f"/room/{'x' * 500}/").status_code == 404
    assert cursors_in(client.get("/any/{0}{0.META}/")) == positions(["open:{0}{0.META}"])


def test_a_page_opens_without_cursors_while_the_log_cannot_be_reached(
    client: Client, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"

    response = client.get("/page/", {"template": PAGE})

    assert response.status_code == 200
    assert printed_in(response.content.decode()) == {"open:page": None, "ledger:page": None}
    assert "a page opens without the cursors of open:page, ledger:page: " in caplog.text


async def test_so_does_one_on_an_event_loop(rf: RequestFactory, settings: Settings) -> None:
    settings.HUB_REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"

    @with_cursors("open:7")
    async def view(request: HttpRequest) -> HttpResponse:
        return answer(request)

    assert cursors_in(await view(rf.get("/"))) == {"open:7": None}


def printed_in(text: str) -> dict[str, Any]:
    scripts = re.findall(r'<script id="hub-cursors" type="application/json">(.*?)</script>', text)
    assert len(scripts) == 1, text
    printed: dict[str, Any] = json.loads(scripts[0])
    return printed


@pytest.mark.parametrize("template", [PAGE, BARE])
def test_the_tags_print_the_cursors(client: Client, template: str) -> None:
    publish("open:page", "order.paid")

    response = client.get("/page/", {"template": template})

    expected = positions(["open:page", "ledger:page"])
    assert printed_in(response.content.decode()) == {
        name: {"offset": cursor.offset, "epoch": cursor.epoch} for name, cursor in expected.items()
    }
    assert expected["open:page"].offset == 1


def test_a_page_whose_view_takes_none_has_none(rf: RequestFactory) -> None:
    request = rf.get("/")
    request.csp_nonce = "of this answer"  # type: ignore[attr-defined]

    assert "hub-cursors" not in Template(PAGE).render(Context({"request": request}))
    assert printed_in(Template(BARE).render(Context({"request": request}))) == {}
    assert printed_in(Template(BARE).render(Context())) == {}


def test_names_cannot_end_the_script(rf: RequestFactory) -> None:
    name = "open:</script><script>alert(1)</script>&<!--"
    request = rf.get("/")
    with_cursors(lambda request: name)(answer)(request)

    text = Template(PAGE).render(Context({"request": request}))

    assert "alert(1)</script>" not in text
    assert list(printed_in(text)) == [name]


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Any) -> Iterator[RedisServer]:
    """A Redis that keeps the windows, and that the test may flush."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    server = RedisServer(binary, tmp_path)
    settings.HUB_REDIS_URL = server.url
    yield server
    server.stop()


async def test_a_topic_that_nothing_was_published_to_has_a_run_of_offsets_all_the_same(
    own_redis: RedisServer, rf: RequestFactory
) -> None:
    async def aanswer(request: HttpRequest) -> HttpResponse:
        return answer(request)

    one = cursors_in(await sync_to_async(with_cursors("open:new", "open:other")(answer))(rf.get("/")))
    other = cursors_in(await with_cursors("open:new", "open:newer")(aanswer)(rf.get("/")))

    assert [cursor.offset for cursor in (*one.values(), *other.values()) if cursor] == [0, 0, 0, 0]
    assert all(cursor.epoch for cursor in (*one.values(), *other.values()) if cursor)
    assert one["open:new"] == other["open:new"]
