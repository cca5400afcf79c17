"""The messages of the Centrifuge client protocol, as its public schema (`client.proto`) has them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from notifications.events.event import DEFAULT_TYPE, Cursor, EncodedEvent, Sender

# Unsigned in the protocol; no log counts further than a signed 64-bit integer.
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class StreamPosition(msgspec.Struct, frozen=True):
    offset: Offset = 0
    epoch: str = ""

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.offset, self.epoch)


class SubscribeRequest(msgspec.Struct, frozen=True):
    channel: str = ""
    token: str = ""
    recover: bool = False
    offset: Offset = 0
    epoch: str = ""
    join_leave: bool = False
    positioned: bool = False
    recoverable: bool = False
    flag: int = 0
    type: int = 0
    tf: Any = None


class ConnectRequest(msgspec.Struct, frozen=True):
    token: str = ""
    data: msgspec.Raw = msgspec.Raw()
    subs: dict[str, SubscribeRequest] | None = None
    name: str = ""
    version: str = ""


class TopicRequest(msgspec.Struct, frozen=True):
    channel: str = ""


class PublishRequest(msgspec.Struct, frozen=True):
    channel: str = ""
    data: Any = msgspec.UNSET


class HistoryRequest(msgspec.Struct, frozen=True):
    channel: str = ""
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


class RefreshRequest(msgspec.Struct, frozen=True):
    token: str = ""


class RpcRequest(msgspec.Struct, frozen=True):
    method: str = ""
    data: Any = None


class Command(msgspec.Struct, frozen=True):
    """One message of a client: an id, and exactly one method with its request."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: TopicRequest | None = None
    publish: PublishRequest | None = None
    presence: TopicRequest | None = None
    presence_stats: TopicRequest | None = None
    history: HistoryRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: TopicRequest | None = None
    send: dict[str, Any] | None = None


METHODS = tuple(name for name in Command.__struct_fields__ if name != "id")


def method_of(command: Command) -> str | None:
    """The method that a command asks for, or None when it asks for none."""
    for name in METHODS:
        if getattr(command, name) is not None:
            return name
    return None


class ClientInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    user: str = ""
    client: str = ""
    conn_info: dict[str, Any] | None = None


class Publication(msgspec.Struct, frozen=True, omit_defaults=True):
    data: msgspec.Raw
    offset: int = 0
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    epoch: str = ""


class PublicationPush(msgspec.Struct, frozen=True):
    channel: str
    pub: Publication


class Push(msgspec.Struct, frozen=True):
    push: PublicationPush


def publication_of(event: EncodedEvent) -> Publication:
    """An event as a publication: type, id and key as its tags, the sender as its info."""
    tags = None
    if event.type != DEFAULT_TYPE or event.key is not None:
        tags = {"type": event.type, "id": event.id}
        if event.key is not None:
            tags["key"] = event.key
    offset = event.offset or 0
    return Publication(
        data=event.data,
        offset=offset,
        info=None if event.sender is None else client_info_of(event.sender),
        tags=tags,
        # The first event of a run names it, for clients that subscribed when there was none.
        epoch=event.epoch if offset == 1 else "",
    )


def client_info_of(sender: Sender) -> ClientInfo:
    """A sender as the protocol's ClientInfo."""
    return ClientInfo(sender.user, sender.client, sender.info)
