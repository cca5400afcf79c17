"""The requests and results of the HTTP API, in the shapes of Centrifugo's.

Source: the public documentation and schema of Centrifugo's server API. What it calls a channel is a topic.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct

from notifications.delivery.protocols.schema import Publication
from notifications.events.topics import MAX_NAME_LENGTH

#: Where the schemas are in the OpenAPI document.
REFERENCE = "#/components/schemas/"

MOST_SECONDS = 2**53 - 1

Topic = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, description="Name of a topic.")]
User = Annotated[str, Meta(description="Id of a user. A user, a client or a session has to be named.")]
Client = Annotated[str | None, Meta(description="Only the connection with this client id.")]
Session = Annotated[str | None, Meta(description="Only the connection with this session id.")]
UnixTime = Annotated[int, Meta(ge=0, le=MOST_SECONDS, description="Unix time at which it expires; 0 for never.")]


# Requests.


class Publishing(Struct, frozen=True, kw_only=True):
    """What is published, wherever."""

    data: Annotated[Any, Meta(description="Any JSON. It has to be given, here or as `b64data`.")] = UNSET
    b64data: Annotated[str | None, Meta(description="In the place of `data`: the base64 of JSON.")] = None
    type: Annotated[
        str | None, Meta(description="Type of the event, such as order.paid; by default the one its topic declares.")
    ] = None
    key: Annotated[
        str | None, Meta(description="What the event is about, for topics that keep the newest per key.")
    ] = None
    idempotency_key: Annotated[
        str | None,
        Meta(description="A repetition with the same key, on the same topic and in five minutes, is not published."),
    ] = None
    skip_history: Annotated[
        bool,
        Meta(description="For those alone who are connected; refused with error 107 on a durable topic."),
    ] = False
    tags: Annotated[
        dict[str, str] | None,
        Meta(description="Travel with the event. `type` and `key` are taken for the fields of these names as well."),
    ] = None
    delta: Annotated[
        bool, Meta(description="Changes nothing: whoever negotiated delta compression gets it for every event.")
    ] = False
    version: Annotated[
        int,
        Meta(ge=0, le=2**63 - 1, description="Not published unless above the last version on the topic; 0 for none."),
    ] = 0
    version_epoch: Annotated[str | None, Meta(description="Versions of different epochs are not compared.")] = None


class PublishRequest(Publishing, frozen=True, kw_only=True):
    channel: Topic


class BroadcastRequest(Publishing, frozen=True, kw_only=True):
    channels: Annotated[
        list[Topic], Meta(min_length=1, description="Names of topics, at most as many as HUB_MAX_BATCH.")
    ]


class Position(Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1, description="The last offset that is known already.")] = 0
    epoch: Annotated[str, Meta(description="The run of offsets that it belongs to.")] = ""


class SubscribeRequest(Struct, frozen=True, kw_only=True):
    channel: Topic
    user: User = ""
    client: Client = None
    session: Session = None
    info: Annotated[Any, Meta(description="Any JSON that others see of this subscription, in presence and joins.")] = (
        None
    )
    b64info: Annotated[str | None, Meta(description="In the place of `info`: the base64 of JSON.")] = None
    data: Annotated[Any, Meta(description="Any JSON that the client gets with the subscription.")] = None
    b64data: Annotated[str | None, Meta(description="In the place of `data`: the base64 of JSON.")] = None
    recover_since: Annotated[
        Position | None, Meta(description="The client gets the events after it that the topic keeps.")
    ] = None
    expire_at: UnixTime = 0
    override: Annotated[
        dict[str, Any] | None, Meta(description="Changes nothing: options of a topic are declared, for all alike.")
    ] = None


class UnsubscribeRequest(Struct, frozen=True, kw_only=True):
    channel: Topic
    user: User = ""
    client: Client = None
    session: Session = None


class DisconnectCode(Struct, frozen=True):
    code: Annotated[
        int, Meta(ge=0, le=4999, description="3000 to 4999; clients stay away after 3500 to 3999 and from 4500 on.")
    ] = 0
    reason: Annotated[str, Meta(description="At most 123 bytes.")] = ""


class DisconnectRequest(Struct, frozen=True, kw_only=True):
    user: User = ""
    client: Client = None
    session: Session = None
    whitelist: Annotated[list[str] | None, Meta(description="Ids of clients that stay connected.")] = None
    disconnect: Annotated[
        DisconnectCode | None, Meta(description="What the client is told; 3503, after which it stays away, by default.")
    ] = None


class RefreshRequest(Struct, frozen=True, kw_only=True):
    user: User = ""
    client: Client = None
    session: Session = None
    expired: Annotated[bool, Meta(description="The connection has expired: it is closed with 3005.")] = False
    expire_at: UnixTime = 0


class HistoryRequest(Struct, frozen=True):
    channel: Topic
    limit: Annotated[
        int, Meta(ge=-1, le=2**31 - 1, description="Most events to answer with; -1 for as many as HUB_MAX_HISTORY.")
    ] = 0
    since: Annotated[
        Position | None,
        Meta(
            description="Only events after it, or before it with `reverse`. An epoch that is not the topic's is "
            "answered with error 112."
        ),
    ] = None
    reverse: Annotated[bool, Meta(description="The newest first.")] = False


class TopicRequest(Struct, frozen=True):
    channel: Topic


class ChannelsRequest(Struct, frozen=True):
    pattern: Annotated[str, Meta(description="Only topics that match; * and ? stand for characters.")] = ""


class InfoRequest(Struct, frozen=True):
    """Nothing."""


class RpcRequest(Struct, frozen=True):
    method: Annotated[str, Meta(min_length=1, description="Name of the function.")]
    params: Annotated[Any, Meta(description="What the function takes, as JSON.")] = UNSET


class BatchRequest(Struct, frozen=True):
    commands: Annotated[
        list[Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": f"{REFERENCE}Command"})]],
        Meta(description="Objects with the name of a method and its request, at most as many as HUB_MAX_BATCH."),
    ]
    parallel: Annotated[bool, Meta(description="Not one after the other, but at once and in any order.")] = False


# Results.


class Error(Struct, frozen=True):
    code: int
    message: str


class Nothing(Struct, frozen=True):
    """Nothing: it was done."""


class PublishResult(Struct, frozen=True):
    offset: Annotated[int, Meta(description="Position in the topic; 0 where it keeps nothing.")]
    epoch: Annotated[str, Meta(description="The unbroken run of offsets.")]


class PublishReply(Struct, frozen=True, omit_defaults=True):
    result: PublishResult | None = None
    error: Error | None = None


class BroadcastResult(Struct, frozen=True):
    responses: Annotated[list[PublishReply], Meta(description="One for each topic, in the order they were named.")]


class HistoryResult(Struct, frozen=True):
    publications: list[Publication]
    offset: Annotated[int, Meta(description="The topic's newest position.")]
    epoch: str


class Member(Struct, frozen=True):
    client: str
    user: Annotated[str, Meta(description="The user's id, empty for a visitor.")] = ""
    conn_info: Annotated[Any, Meta(description="What others may know of the user.")] = UNSET
    chan_info: Annotated[Any, Meta(description="What others may know of the subscription.")] = UNSET


class PresenceResult(Struct, frozen=True):
    presence: Annotated[dict[str, Member], Meta(description="Who is subscribed, by the id of the client.")]


class PresenceStatsResult(Struct, frozen=True):
    num_clients: int
    num_users: int


class ChannelInfo(Struct, frozen=True):
    num_clients: int


class ChannelsResult(Struct, frozen=True):
    channels: dict[str, ChannelInfo]


class NodeInfo(Struct, frozen=True):
    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: Annotated[int, Meta(description="Seconds since its start.")]


class InfoResult(Struct, frozen=True):
    nodes: list[NodeInfo]


class RpcResult(Struct, frozen=True):
    data: Annotated[Raw, Meta(description="What the function returned, as JSON.")]


class BatchResult(Struct, frozen=True):
    replies: Annotated[
        list[Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": f"{REFERENCE}Reply"})]],
        Meta(description="One for each command, in their order: the method's name with its result, or an error."),
    ]
