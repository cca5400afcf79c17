"""The Centrifuge protocol without a WebSocket: a streamed answer in one direction, requests in the other.

`emulated_streams.py` has the streams. What a client sends after its first commands comes with `POST /emulation`, to
whichever process: it names the process that has its session, and the session by a secret that only it was told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec

from notifications.delivery import control
from notifications.delivery.auth import Application, Receive, Scope, Send
from notifications.delivery.cross_origin import CrossOrigin
from notifications.delivery.emulated_streams import OCTETS, http_stream, sse
from notifications.delivery.protocols import protobuf
from notifications.delivery.protocols.schema import EmulationRequest
from notifications.delivery.registry import registry
from notifications.delivery.responses import Problem, content_type, read_body
from notifications.delivery.switchboard import current_switchboard
from notifications.events import conf, messenger
from notifications.events.exceptions import LogUnavailable
from notifications.events.messages import control_message

logger = logging.getLogger(__name__)

#: How long the channels of the other processes are taken for known.
NODES_SECONDS = 1.0


class _JsonRequest(msgspec.Struct):
    """The JSON form of an `EmulationRequest`, in which commands are a text."""

    session: str
    node: str
    data: str


_decode_json = msgspec.json.Decoder(_JsonRequest).decode


class Nodes:
    """Where the server processes are reached, as the registry knows it."""

    def __init__(self) -> None:
        self._channels: Mapping[str, str] = {}
        self._read_at = 0.0

    async def channel_of(self, node: str) -> str | None:
        """The channel of a process, or None when there is none. Raises LogUnavailable."""
        # One that is not known may have started just now, and its clients must not be sent away.
        if node not in self._channels or time.monotonic() - self._read_at > NODES_SECONDS:
            read_at = time.monotonic()
            self._channels = {known.id: known.channel for known in await registry().anodes()}
            self._read_at = read_at
        return self._channels.get(node)


class EmulationApplication:
    """`POST /emulation`: hands the commands of a request to the session that it names, in whichever process.

    Raises Problem.
    """

    def __init__(self) -> None:
        self._nodes = Nodes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, limit=conf.get("HUB_MAX_MESSAGE_BYTES"))
        try:
            request = _emulation_request(body, binary=content_type(scope) == OCTETS)
        except ValueError as error:
            raise Problem(400, f"not an emulation request: {error}") from error
        await self._hand_over(request)
        await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
        await send({"type": "http.response.body", "body": b""})

    async def _hand_over(self, request: EmulationRequest) -> None:
        """Give commands to the process of their session. One that has ended is no error: its stream ends as well."""
        message = control_message("emulate", session=request.session, data=request.data)
        try:
            switchboard = await current_switchboard()
            if request.node == switchboard.node:
                control.perform(switchboard, message)
                return
            channel = await self._nodes.channel_of(request.node)
        except LogUnavailable as error:
            raise Problem(503, str(error)) from error
        if channel is None:
            raise Problem(404, "there is no such node; connect again")
        try:
            await messenger.layer().send(channel, message)
        except Exception as error:  # every layer has its own
            logger.warning("a client's commands could not be handed over: %s", error)
            raise Problem(503, "the node cannot be reached; connect again") from error


def _emulation_request(body: bytes, *, binary: bool) -> EmulationRequest:
    """The request in a body. Raises ValueError."""
    if binary:
        return protobuf.decode_emulation(body)
    request = _decode_json(body)
    return EmulationRequest(request.node, request.session, request.data)


def emulation_applications() -> dict[str, Application]:
    """The applications by their paths."""
    return {
        "/connection/sse": CrossOrigin(sse, "GET", "POST"),
        "/connection/http_stream": CrossOrigin(http_stream, "POST"),
        "/emulation": CrossOrigin(EmulationApplication(), "POST"),
    }
