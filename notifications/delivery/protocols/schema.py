"""The messages of the Centrifuge client protocol, as its public schema (`client.proto`) has them.

The JSON form leaves out every field with a zero value, and holds JSON where the schema has `bytes`. The binary form
is made from the same types, see `protobuf.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from notifications.events.event import DEFAULT_TYPE, Cursor, EncodedEvent, Sender

# Unsigned in the protocol; no log counts further than a signed 64-bit integer.
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: JSON text that is passed on as it came.
Json = Raw | UnsetType


# What a client sends.


class StreamPosition(Struct, frozen=True, omit_defaults=True):
    offset: Offset = 0
    epoch: str = ""

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.offset, self.epoch)


class FilterNode(Struct, frozen=True, omit_defaults=True):
    """A node of a filter of tags: a comparison (`key`, `cmp`, `val` or `vals`), or `op` over its `nodes`."""

    op: str = ""
    key: str = ""
    cmp: str = ""
    val: str = ""
    vals: list[str] = []
    nodes: list[FilterNode] = []


class SubscribeRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""
    token: str = ""
    recover: bool = False
    offset: Offset = 0
    epoch: str = ""
    data: Json = UNSET
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: FilterNode | None = None
    flag: int = 0
    #: Of maps and polls, which the hub does not have.
    type: int = 0


class ConnectRequest(Struct, frozen=True, omit_defaults=True):
    token: str = ""
    data: Json = UNSET
    subs: dict[str, SubscribeRequest] | None = None
    name: str = ""
    version: str = ""
    headers: dict[str, str] | None = None
    flag: int = 0


class UnsubscribeRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""


class PublishRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""
    data: Json = UNSET


class PresenceRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""


class PresenceStatsRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""


class HistoryRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


class PingRequest(Struct, frozen=True, omit_defaults=True):
    pass


class SendRequest(Struct, frozen=True, omit_defaults=True):
    data: Json = UNSET


class RpcRequest(Struct, frozen=True, omit_defaults=True):
    data: Json = UNSET
    method: str = ""


class RefreshRequest(Struct, frozen=True, omit_defaults=True):
    token: str = ""


class SubRefreshRequest(Struct, frozen=True, omit_defaults=True):
    channel: str = ""
    token: str = ""


class Command(Struct, frozen=True, omit_defaults=True):
    """One message of a client: an id, and exactly one method with its request; none of it is the answer to a ping."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    presence: PresenceRequest | None = None
    presence_stats: PresenceStatsRequest | None = None
    history: HistoryRequest | None = None
    ping: PingRequest | None = None
    send: SendRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None


METHODS = tuple(name for name in Command.__struct_fields__ if name != "id")


def method_of(command: Command) -> str | None:
    """The method that a command asks for, or None when it asks for none."""
    for name in METHODS:
        if getattr(command, name) is not None:
            return name
    return None


class EmulationRequest(Struct, frozen=True, omit_defaults=True):
    """What a client of an emulated transport sends beside its stream: `data` holds its commands."""

    node: str = ""
    session: str = ""
    data: str | bytes = ""


# What a client gets.


class ClientInfo(Struct, frozen=True, omit_defaults=True):
    user: str
    client: str
    conn_info: Any = None
    chan_info: Any = None


class Publication(Struct, frozen=True, omit_defaults=True):
    data: Raw
    offset: int = 0
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    delta: bool = False
    #: Not in the binary form: the run that the first event of a topic begins.
    epoch: str = ""


class Error(Struct, frozen=True, omit_defaults=True):
    code: int = 0
    message: str = ""
    temporary: bool = False


class SubscribeResult(Struct, frozen=True, omit_defaults=True):
    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[Publication] = []
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: Json = UNSET
    was_recovering: bool = False
    delta: bool = False


class ConnectResult(Struct, frozen=True, omit_defaults=True):
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0
    data: Json = UNSET
    subs: dict[str, SubscribeResult] = {}
    #: Seconds between pings, and whether they are to be answered.
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    #: Milliseconds since 1970.
    time: int = 0


class UnsubscribeResult(Struct, frozen=True, omit_defaults=True):
    pass


class PublishResult(Struct, frozen=True, omit_defaults=True):
    pass


class PresenceResult(Struct, frozen=True):
    presence: dict[str, ClientInfo] = {}


class PresenceStatsResult(Struct, frozen=True):
    num_clients: int = 0
    num_users: int = 0


class HistoryResult(Struct, frozen=True):
    publications: list[Publication] = []
    epoch: str = ""
    offset: int = 0


class RpcResult(Struct, frozen=True, omit_defaults=True):
    data: Json = UNSET


class RefreshResult(Struct, frozen=True, omit_defaults=True):
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(Struct, frozen=True, omit_defaults=True):
    expires: bool = False
    ttl: int = 0


class Join(Struct, frozen=True, omit_defaults=True):
    info: ClientInfo | None = None


class Leave(Struct, frozen=True, omit_defaults=True):
    info: ClientInfo | None = None


class Unsubscribe(Struct, frozen=True, omit_defaults=True):
    code: int = 0
    reason: str = ""


class Message(Struct, frozen=True, omit_defaults=True):
    data: Json = UNSET


class Subscribe(Struct, frozen=True, omit_defaults=True):
    recoverable: bool = False
    epoch: str = ""
    offset: int = 0
    positioned: bool = False
    data: Json = UNSET


class Disconnect(Struct, frozen=True, omit_defaults=True):
    code: int = 0
    reason: str = ""


class Refresh(Struct, frozen=True, omit_defaults=True):
    expires: bool = False
    ttl: int = 0


class Push(Struct, frozen=True, omit_defaults=True):
    channel: str = ""
    pub: Publication | None = None
    join: Join | None = None
    leave: Leave | None = None
    unsubscribe: Unsubscribe | None = None
    message: Message | None = None
    subscribe: Subscribe | None = None
    disconnect: Disconnect | None = None
    refresh: Refresh | None = None


class Reply(Struct, frozen=True, omit_defaults=True):
    """One message to a client: the answer to the command with this id, a push, or, when it is empty, a ping."""

    id: int = 0
    error: Error | None = None
    push: Push | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: UnsubscribeResult | None = None
    publish: PublishResult | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStatsResult | None = None
    history: HistoryResult | None = None
    rpc: RpcResult | None = None
    refresh: RefreshResult | None = None
    sub_refresh: SubRefreshResult | None = None


def publication_of(event: EncodedEvent, *, data: Raw | None = None, delta: bool = False) -> Publication:
    """An event as a publication: type, id and key among its tags, the sender as its info.

    `data` stands in the place of the event's own where it is sent as a delta, or as the text that deltas refer to.
    """
    offset = event.offset or 0
    return Publication(
        data=event.data if data is None else data,
        offset=offset,
        info=None if event.sender is None else client_info_of(event.sender),
        tags=tags_of(event),
        delta=delta,
        # The first event of a run names it, for clients that subscribed when there was none.
        epoch=event.epoch if offset == 1 else "",
    )


def tags_of(event: EncodedEvent) -> dict[str, str] | None:
    """The tags of an event's publication."""
    if event.type == DEFAULT_TYPE and event.key is None:
        return event.tags
    tags = {**(event.tags or {}), "type": event.type, "id": event.id}
    if event.key is not None:
        tags["key"] = event.key
    return tags


def client_info_of(sender: Sender) -> ClientInfo:
    """A sender as the protocol's ClientInfo."""
    return ClientInfo(sender.user, sender.client, sender.info)
