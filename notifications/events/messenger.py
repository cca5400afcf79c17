"""Hands messages to the channel layer from any thread, without `async_to_sync`.

`async_to_sync(layer.group_send)` makes an event loop, and with channels-redis a TCP connection, for every
call. Here the layer of one process is called directly, the pub/sub layer of channels-redis is written to in its
own format over one kept connection, and any other layer is called on a loop that lives on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import msgspec
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer

from notifications.events import bridge, conf, counters, local, redis_clients
from notifications.events.event import EncodedEvent
from notifications.events.exceptions import HubError, LogUnavailable
from notifications.events.layers import InProcessChannelLayer
from notifications.events.messages import group_of
from notifications.events.topics import ResolvedTopic

logger = logging.getLogger(__name__)

_server_loop: asyncio.AbstractEventLoop | None = None
_private_loop: tuple[int, asyncio.AbstractEventLoop] | None = None
_private_loop_lock = threading.Lock()


def serve_from(loop: asyncio.AbstractEventLoop | None) -> None:
    """Name the loop on which this process's layer is used, so that layers bound to a loop are called there."""
    global _server_loop
    _server_loop = loop


def layer() -> Any:
    """The default channel layer. Raises HubError when none is configured."""
    found = get_channel_layer()
    if found is None:
        raise HubError("CHANNEL_LAYERS has no 'default' layer; events cannot be announced")
    return found


def redis_group_channel(group: str) -> str | None:
    """The Redis channel on which the configured pub/sub layer receives a group, or None if it is another layer.

    Only a layer on one Redis, the hub's own, in the format msgpack and without encryption can be written to
    directly.
    """
    found = layer()
    if not isinstance(found, RedisPubSubChannelLayer):
        return None
    options = found._kwargs
    serializer = found._serializer
    if getattr(serializer, "crypter", None) or type(serializer).__name__ != "MsgPackSerializer":
        return None
    hosts = options.get("hosts") or []
    addresses = [host.get("address") if isinstance(host, dict) else host for host in hosts]
    if addresses != [conf.get("HUB_REDIS_URL")]:
        return None
    return f"{options.get('prefix', 'asgi')}__group__{group}"


def mirror_message(topic: ResolvedTopic, event: EncodedEvent) -> dict[str, Any] | None:
    """The event as members of the topic's plain Channels group get it, or None when it cannot be one.

    Data that is not an object has no place in a message of that shape, and only events of the declared default
    type have a handler in plain consumers.
    """
    if topic.mirror_group is None or event.type != topic.declaration.default_type:
        return None
    data = msgspec.json.decode(event.data)
    return {**data, "type": topic.declaration.channels_type} if isinstance(data, dict) else None


def announce(topic: ResolvedTopic, event: EncodedEvent, message: dict[str, Any]) -> None:
    """Send an event's message to its topic's group, and its mirror to the plain group, from any thread."""
    send(group_of(topic.name), message)
    mirror = mirror_message(topic, event)
    if mirror is not None and topic.mirror_group is not None:
        send(topic.mirror_group, mirror)


def send(group: str, message: dict[str, Any]) -> None:
    """Send a message to a group, from any thread, past the bridge that would publish it again.

    Raises LogUnavailable when the layer cannot be reached. On a layer that is bound to this thread's running loop
    the message is sent as soon as the loop runs on, and failures are logged.
    """
    found = layer()
    if isinstance(found, InProcessChannelLayer):
        if local.is_remote():
            local.owner.call("group_send", group=group, message=message)
        else:
            found.deliver_to_group(group, message)
        return
    if (channel := redis_group_channel(group)) is not None:
        with redis_clients.translated_errors():
            redis_clients.sync_client().publish(channel, found.serialize(message))
        return
    _send_on_loop(bridge.unbridged(found)(group, message))


def _send_on_loop(sending: Any) -> None:
    loop = _server_loop
    if loop is not None and loop.is_running():
        # Not waited for: the caller may hold a lock that the loop's thread is waiting for.
        asyncio.run_coroutine_threadsafe(_logged(sending), loop)
        return
    timeout = conf.get("HUB_REDIS_TIMEOUT_SECONDS")
    try:
        asyncio.run_coroutine_threadsafe(sending, _own_loop()).result(timeout)
    except Exception as error:  # any layer's own errors mean the same here
        raise LogUnavailable(f"the channel layer did not take a message: {error!r}") from error


async def _logged(sending: Any) -> None:
    try:
        await sending
    except Exception:
        counters.add("announce_failures")
        logger.exception("the channel layer did not take a message; it is found in the log later")


def _own_loop() -> asyncio.AbstractEventLoop:
    global _private_loop
    with _private_loop_lock:
        if _private_loop is None or _private_loop[0] != os.getpid():  # a fork does not inherit the thread
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="hub-messenger", daemon=True).start()
            _private_loop = (os.getpid(), loop)
        return _private_loop[1]
