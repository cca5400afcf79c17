"""The cursors of a page: positions taken before its view reads anything, from which the page's subscriptions go on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest

from notifications.events import Cursor
from notifications.events.exceptions import LogUnavailable, UnknownTopic
from notifications.events.selectors import apositions, positions
from notifications.events.threads import running_loop
from notifications.events.topics import namespace_of, registry, resolve

if TYPE_CHECKING:
    from django.views import View as _View
else:
    _View = object

logger = logging.getLogger(__name__)

#: A name, which may have parts of the URL in it (`orders:{order_id}`), or a function of the request that returns names.
PageTopic = str | Callable[[HttpRequest], str | Iterable[str]]
View = Callable[..., Any]


def with_cursors(*topics: PageTopic) -> Callable[[View], View]:
    """Take the cursors of `topics` before the view runs, for `{% hub_script %}` or `{% hub_cursors %}` to print.

    They are in `request.hub_cursors`, by topic, None where the log could not be reached: the page then opens without,
    and its scripts are told to load their state again. Whether the user may open the page is for the view to decide.
    A name that nothing declares is a mistake (ImproperlyConfigured), unless parts of it came with the request: then
    there is no such page (404).
    """
    if not topics:
        raise ImproperlyConfigured("with_cursors() was given no topic")

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def opened(request: HttpRequest, /, *args: Any, **kwargs: Any) -> Any:
            # By where it runs: `dispatch` of a class whose handlers are coroutines is none itself.
            if running_loop() is not None:
                return _open_later(topics, view, request, args, kwargs)
            names = _names(topics, request, args, kwargs)
            try:
                _keep(request, positions(names))
            except LogUnavailable as error:
                _do_without(request, names, error)
            return view(request, *args, **kwargs)

        return markcoroutinefunction(opened) if iscoroutinefunction(view) else opened

    return decorate


class CursorsMixin(_View):
    """`with_cursors()` for class-based views: takes the cursors of `cursor_topics` before the view's first query.

    Stands before the view it is mixed into, and behind mixins that refuse users.
    """

    cursor_topics: Sequence[PageTopic] = ()

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Take the cursors, then do what the view does."""
        if isinstance(self.cursor_topics, str) or not self.cursor_topics:
            raise ImproperlyConfigured(f"{type(self).__name__}.cursor_topics has to be a list of topics")
        return with_cursors(*self.cursor_topics)(super().dispatch)(request, *args, **kwargs)


async def _open_later(
    topics: Sequence[PageTopic], view: View, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if any(callable(topic) for topic in topics):
        # What such a function looks at may be a query: `request.user` is one.
        names = await sync_to_async(_names)(topics, request, args, kwargs)
    else:
        names = _names(topics, request, args, kwargs)
    try:
        _keep(request, await apositions(names))
    except LogUnavailable as error:
        _do_without(request, names, error)
    answer = view(request, *args, **kwargs)
    return await answer if isawaitable(answer) else answer


def _names(
    topics: Sequence[PageTopic], request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """The names of the page's topics, each declared and kept."""
    names: dict[str, None] = {}
    for topic in topics:
        if callable(topic):
            answer = topic(request)
            found, fixed = [answer] if isinstance(answer, str) else list(answer), False
        else:
            found, fixed = [_filled_in(topic, args, kwargs)], "{" not in topic
        for name in found:
            _check(name, fixed=fixed)
            names[name] = None
    return list(names)


def _filled_in(topic: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The topic's name with the parts of the URL; what comes from the URL is not looked at for braces again."""
    try:
        return topic.format(*args, **kwargs)
    except (LookupError, AttributeError, ValueError) as error:
        has = ", ".join(kwargs) or "no named part"
        raise ImproperlyConfigured(f"the topic {topic!r} cannot be filled in from the URL, which has {has}") from error


def _check(name: str, *, fixed: bool) -> None:
    try:
        topic = resolve(name)
    except UnknownTopic as error:
        # Parts that came with the request are the visitor's; a namespace that nobody declared is the developer's.
        if not fixed and namespace_of(name) in {namespace_of(known.pattern) for known in registry.declarations}:
            raise Http404(str(error)) from error
        raise ImproperlyConfigured(f"a page cannot begin with a cursor: {error}") from error
    if not topic.retention.kept:
        raise ImproperlyConfigured(
            f"the topic {name!r} keeps no events, so that it has no cursor: give it window() or durable() as retention"
        )


def _keep(request: HttpRequest, found: Mapping[str, Cursor | None]) -> None:
    # Where one decorator stands above another, the first to ask has asked earlier.
    request.hub_cursors = {**found, **cursors_of(request)}  # type: ignore[attr-defined]


def _do_without(request: HttpRequest, names: list[str], error: LogUnavailable) -> None:
    logger.warning("a page opens without the cursors of %s: %s", ", ".join(names), error)
    _keep(request, dict.fromkeys(names))


def cursors_of(request: HttpRequest | None) -> dict[str, Cursor | None]:
    """The cursors that were taken for the request's view, by topic."""
    return getattr(request, "hub_cursors", {})
