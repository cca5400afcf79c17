"""Lets plain Channels code take part in topics that declare a `channels_group`.

A plain `group_send` to that group becomes an event of the topic, whoever sends it and whichever layer is
configured; the event then reaches the group's plain members as its mirror, sent past the bridge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from channels.layers import channel_layers

from notifications.events.topics import registry

GroupSend = Callable[[str, dict[str, Any]], Awaitable[None]]


def install() -> None:
    """Connect every channel layer that Channels makes, now and after a change of settings."""
    make_backend = channel_layers.make_backend

    def make_connected_backend(name: str) -> Any:
        return connect(make_backend(name))

    channel_layers.make_backend = make_connected_backend
    for layer in channel_layers.backends.values():
        connect(layer)


def connect(layer: Any) -> Any:
    """Make `group_send` of this layer publish what belongs to a topic; returns the layer."""
    if "hub_unbridged_group_send" in vars(layer):  # not hasattr: channels-redis asks for a running loop then
        return layer
    group_send: GroupSend = layer.group_send

    async def bridged_group_send(group: str, message: dict[str, Any]) -> None:
        from notifications.events.services import apublish  # services need the messenger, and so this module

        topic = registry.mirrored_by(group, message.get("type", ""))
        if topic is None:
            await group_send(group, message)
        else:
            data = {name: value for name, value in message.items() if name != "type"}
            await apublish(topic.name, topic.declaration.default_type, data)

    layer.hub_unbridged_group_send = group_send
    layer.group_send = bridged_group_send
    return layer


def unbridged(layer: Any) -> GroupSend:
    """The layer's own `group_send`."""
    found: GroupSend = vars(layer).get("hub_unbridged_group_send") or layer.group_send
    return found
