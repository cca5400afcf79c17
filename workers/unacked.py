"""Tasks in hand are held by a lease that their worker renews, however long they take.

A Redis broker gives a task that was not acknowledged within its visibility timeout to another worker. Alone that
asks for a choice: a long timeout, after which the tasks of a killed worker come back, or long tasks that run twice.
Here the timeout is short, and a worker that lives puts it off.

For the same reason a worker that loses its connection does not give back what it is working on, as it otherwise would:
it acknowledges over the next connection.

Both reach into what is kombu's own. So a worker first sends itself a message, and looks whether kombu keeps it as is
expected here; if it does not, the worker says so and goes on without leases.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any

import kombu
from celery import Celery, bootsteps
from celery.worker import state
from kombu.exceptions import OperationalError
from kombu.transport import virtual
from redis.exceptions import RedisError, ResponseError

logger = logging.getLogger(__name__)

# Of the visibility timeout: a renewal may fail a few times before the lease ends.
RENEWED_PER_TIMEOUT = 4
KOMBU_VISIBILITY_SECONDS = 3600
_RUN = bootsteps.RUN  # type: ignore[attr-defined]  # the stubs lack it
# A clock that is further off than this would also be too far off for kombu's own comparisons.
CLOCK_SECONDS = 30


def differences(app: Celery) -> list[str]:
    """In what kombu keeps messages that were not acknowledged otherwise than is expected here, in words.

    A message of its own is sent, received and acknowledged for this. Raises the broker's errors, when it cannot take
    one at the moment for instance.
    """
    name = f"hub.probe.{uuid.uuid4().hex}"
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        try:
            kombu.Producer(channel).publish(b"", routing_key=name)
            message = kombu.Queue(name)(channel).get()
            return list(_differ(channel, message))
        except (AttributeError, TypeError, LookupError, ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not str(error).startswith("WRONGTYPE"):
                raise
            return [f"{type(error).__name__}: {error}"]
        finally:
            with suppress(AttributeError):
                channel.client.delete(name)


def _differ(channel: Any, message: Any) -> Iterator[str]:
    if message is None:
        yield "a message that was sent cannot be received"
        return
    tag, qos, index = message.delivery_tag, channel.qos, channel.unacked_index_key
    if tag not in qos._delivered.copy() or tag in qos._dirty.copy():
        yield "a message is not among those delivered"
    delivered_at = channel.client.zscore(index, tag)
    if delivered_at is None or abs(time.time() - delivered_at) > CLOCK_SECONDS:
        yield f"{index} does not have the time at which a message was delivered"
    if message.channel is not channel or not callable(qos.restore_unacked):
        yield "a message is not given back by its channel"
    message.ack()
    if tag in set(qos._delivered) - qos._dirty:
        yield "a message that was acknowledged is among those delivered"
    if channel.client.zscore(index, tag) is not None:
        yield f"{index} has a message that was acknowledged"


class LeasedTasks(bootsteps.StartStopStep):
    """A step of Celery's worker that leases the messages which it has not acknowledged yet."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._app: Celery = consumer.app
        options = self._app.conf.broker_transport_options or {}
        self._seconds = options.get("visibility_timeout", KOMBU_VISIBILITY_SECONDS) / RENEWED_PER_TIMEOUT
        self._channel: Any = None
        # None for as long as it could not be tried.
        self._knows_kombu: bool | None = None
        self._away = _Away()
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def include_if(self, consumer: Any) -> bool:
        with self._app.connection_for_read() as connection:
            return bool(connection.transport.driver_type == "redis")

    # Called by the consumer: at each connection, at each loss of one, and when the last task has ended.

    def start(self, consumer: Any) -> None:
        if self._knows_kombu is None:
            self._knows_kombu = self._try_kombu()
        if self._knows_kombu is False:
            return
        self._channel = channel = consumer.task_consumer.channel
        restore = channel.qos.restore_unacked
        channel.qos.restore_unacked = lambda *args, **kwargs: self._restore(consumer, channel.qos, restore)
        self._away.end(channel)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew_until_ended, name="hub-task-leases", daemon=True)
            self._thread.start()
        self._wake.set()

    def stop(self, consumer: Any) -> None:
        if self._knows_kombu is not False and consumer.blueprint.state == _RUN:
            self._away.begin()

    def terminate(self, consumer: Any) -> None:
        self.shutdown(consumer)

    def shutdown(self, consumer: Any) -> None:
        # Not before: a worker that is asked to stop first finishes what it has begun.
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(1)

    def _try_kombu(self) -> bool | None:
        try:
            found = differences(self._app)
        except (RedisError, OperationalError) as error:
            logger.warning("whether this kombu lets tasks in hand have a lease could not be tried: %s", error)
            return None
        if found:
            logger.error(
                "tasks in hand have no lease, because kombu %s is not as this release of the hub knows it (%s): a task "
                "that takes longer than %g s is begun a second time beside itself. Install the version of kombu that "
                "requirements.lock has, or set visibility_timeout in CELERY_BROKER_TRANSPORT_OPTIONS to more seconds "
                "than any task takes; those of a killed worker come back that much later.",
                metadata.version("kombu"),
                "; ".join(found),
                self._seconds * RENEWED_PER_TIMEOUT,
            )
        return not found

    def _restore(self, consumer: Any, qos: Any, restore: Callable[[], Any]) -> Any:
        """Give messages back as the channel closes; those of running tasks only if the worker ends."""
        if consumer.blueprint.state == _RUN:
            for tag in self._away.begin():
                qos._delivered.pop(tag, None)
        return restore()

    # The lease.

    def _renew_until_ended(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._ended:
                return
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001 - the broker has many, and the next attempt may succeed
                logger.warning("the leases of the tasks in hand were not renewed: %s", error)

    def _renew(self) -> None:
        qos = self._channel.qos
        # Each copied at once, as the worker's threads go on changing them.
        tags = {*qos._delivered.copy(), *self._away.tags()} - qos._dirty.copy()
        if not tags:
            return
        with self._app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            # Only what is still there: who has lost a lease does not get it back by renewing it.
            channel.client.zadd(channel.unacked_index_key, dict.fromkeys(tags, time.time()), xx=True)


class _Away:
    """Stands for the channel of running tasks' messages while there is no connection."""

    no_ack_consumers = None

    def __init__(self) -> None:
        self._messages: dict[str, Any] = {}
        self._missed: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def tags(self) -> list[str]:
        return list(self._messages)

    def begin(self) -> list[str]:
        """Take over the messages of the tasks that are running; returns their tags."""
        for request in tuple(state.active_requests):
            if not request.acknowledged:
                request.message.channel = self
                self._messages[request.message.delivery_tag] = request.message
        return self.tags()

    def basic_ack(self, tag: str, **options: Any) -> None:
        self._missed.append(("basic_ack", (tag,), options))

    def basic_reject(self, tag: str, **options: Any) -> None:
        self._missed.append(("basic_reject", (tag,), options))

    def end(self, channel: Any) -> None:
        """Hand the messages over to a channel that is connected, with what was said of them meanwhile."""
        messages, self._messages = self._messages, {}
        for tag, message in messages.items():
            # They are delivered already: the channel only has to know of them.
            virtual.QoS.append(channel.qos, message, tag)
            message.channel = channel
        while self._missed:
            method, arguments, options = self._missed[0]
            getattr(channel, method)(*arguments, **options)
            del self._missed[0]
