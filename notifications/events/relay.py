"""The relay: it publishes what other processes committed and could not send any more.

Every server process has one. Where there are none, a task that workers run once a minute does what matters of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import aclosing, suppress

from django.db import DatabaseError, InterfaceError

from notifications.events import metrics
from notifications.events.exceptions import HubError, LogUnavailable
from notifications.events.logs import notices, outbox
from notifications.events.logs.epochs import notice_restore
from notifications.events.logs.numbering import announce_newest, database
from notifications.events.models import SetAsideEvent
from notifications.events.threads import in_database_thread

logger = logging.getLogger(__name__)

#: How often the relay looks when it hears nothing.
RELAY_SECONDS = 2.0
#: How long a process may take to number what it committed, before the relay does it in its place.
GRACE_SECONDS = 0.1
#: How long events stay pending that nothing declares a topic for, before they are set aside.
UNDECLARED_SECONDS = 60.0
#: How often the relay looks whether this process declares the topic of something that was set aside.
TAKE_BACK_SECONDS = 60.0
LISTEN_AGAIN_SECONDS = 2.0


class Relay:
    """What a relay remembers from one look to the next.

    Left behind is what two looks find pending, at least `GRACE_SECONDS` apart. No clock of a publisher is asked.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # the oldest pending row by topic
        self._undeclared: dict[str, float] = {}  # since when, by topic
        self._failed: dict[str, float] = {}  # when to try again, by topic
        self._took_back_at = float("-inf")

    def look(self, unannounced: Collection[str] = ()) -> bool:
        """Publish what was left behind; returns whether something is pending on which a second look will be due."""
        now = time.monotonic()
        for name in unannounced:
            try:
                announce_newest(name)
            except HubError:
                continue  # not to be reached from here either, or not declared here
            except Exception:
                logger.exception("the newest event of %s could not be announced for another process", name)
        if now >= self._took_back_at + TAKE_BACK_SECONDS:
            self._took_back_at = now
            with suppress(LogUnavailable):
                notice_restore()
            if published := outbox.take_back():
                logger.info("the relay published %d events whose topics are declared again", published)
        pending = outbox.pending()
        left = [name for name, found in pending.items() if self._seen.get(name) == found.oldest]
        self._relay([name for name in left if now >= self._failed.get(name, 0)], now)
        self._seen = {name: found.oldest for name, found in pending.items()}
        metrics.outbox_events.labels("pending").set(sum(found.number for found in pending.values()))
        metrics.outbox_events.labels("set_aside").set(SetAsideEvent.objects.count())
        return not pending.keys() <= self._undeclared.keys() | self._failed.keys()

    def _relay(self, left: Collection[str], now: float) -> None:
        relayed = outbox.relay_topics(left)
        if relayed.published:
            logger.info("the relay published %d events that their process had left behind", relayed.published)
        self._failed = {name: until for name, until in self._failed.items() if until > now}
        self._failed.update(dict.fromkeys(relayed.failed, now + RELAY_SECONDS))
        self._undeclared = {name: self._undeclared.get(name, now) for name in relayed.undeclared}
        for name, since in self._undeclared.items():
            if now >= since + UNDECLARED_SECONDS:
                outbox.set_aside_undeclared(name)


def relay_once() -> int:
    """Publish what was left behind, where no server process does; returns how many events that were.

    One query where nothing is pending, and then a wait of `GRACE_SECONDS`. What cannot be sent stays pending. Raises
    the database's errors.
    """
    before = outbox.pending()
    if not before:
        return 0
    time.sleep(GRACE_SECONDS)
    left = [name for name, found in outbox.pending().items() if name in before and found.oldest == before[name].oldest]
    return outbox.relay_topics(left).published


async def relay_forever() -> None:
    """Publish what is left behind, until cancelled: a tenth of a second after a notice, or at one of the looks."""
    relay = Relay()
    woken = asyncio.Event()
    unannounced: set[str] = set()
    heard_at = float("-inf")

    def heard(topic: str) -> None:
        nonlocal heard_at
        heard_at = time.monotonic()
        if topic:
            unannounced.add(topic)
        woken.set()

    listening = asyncio.get_running_loop().create_task(_listen_forever(heard))
    try:
        while True:
            woken.clear()
            topics = unannounced.copy()
            unannounced.clear()
            # What was staged after a notice is told by none of its own; it is found by a look so much later.
            noticed = time.monotonic() < heard_at + notices.NOTICE_SECONDS
            due = await _look(relay, topics)
            await asyncio.sleep(GRACE_SECONDS)
            if due:
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), notices.NOTICE_SECONDS if noticed else RELAY_SECONDS)
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def _look(relay: Relay, topics: Collection[str]) -> bool:
    try:
        return await in_database_thread(relay.look, topics)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("the relay cannot read the database: %s", error)
    except Exception:
        logger.exception("the relay failed")
    return False


async def _listen_forever(heard: Callable[[str], None]) -> None:
    """Call `heard` with each notice of the database, where it sends some, on a connection that is made again."""
    using = database()
    if not notices.are_heard(using):
        return
    import psycopg

    while True:
        try:
            async with aclosing(notices.listen(using)) as found:
                async for topic in found:
                    heard(topic)
        except psycopg.Error as error:
            logger.warning("the relay does not hear the database's notices: %s", error)
        except Exception:
            logger.exception("the relay does not hear the database's notices")
        await asyncio.sleep(LISTEN_AGAIN_SECONDS)
