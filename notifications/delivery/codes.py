"""Codes of the Centrifuge protocol (error replies, unsubscribe pushes, disconnects), named once.

Source: `codes` of the public Centrifuge client protocol. Every reason is non-empty, because the JavaScript SDK
looks at the terminal range of a close code only together with a reason.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A code of the protocol with its reason; `temporary` tells a client that trying again may help."""

    code: int
    reason: str
    temporary: bool = False


INTERNAL = Code(100, "internal server error", temporary=True)
UNAUTHORIZED = Code(101, "unauthorized")
UNKNOWN_TOPIC = Code(102, "unknown channel")
PERMISSION_DENIED = Code(103, "permission denied")
METHOD_NOT_FOUND = Code(104, "method not found")
ALREADY_SUBSCRIBED = Code(105, "already subscribed")
LIMIT_EXCEEDED = Code(106, "limit exceeded")
BAD_REQUEST = Code(107, "bad request")
NOT_AVAILABLE = Code(108, "not available")
TOKEN_EXPIRED = Code(109, "token expired")
EXPIRED_ALREADY = Code(110, "expired")
TOO_MANY = Code(111, "too many requests", temporary=True)
UNRECOVERABLE_POSITION = Code(112, "unrecoverable position")

UNSUBSCRIBED_BY_SERVER = Code(2000, "server unsubscribe")
UNSUBSCRIBED_INSUFFICIENT_STATE = Code(2500, "insufficient state")
UNSUBSCRIBED_EXPIRED = Code(2501, "subscription expired")
UNSUBSCRIBED_STATE_INVALIDATED = Code(2502, "state invalidated")

SHUTDOWN = Code(3001, "shutdown")
SERVER_ERROR = Code(3004, "internal server error")
EXPIRED = Code(3005, "connection expired")
SUBSCRIPTION_EXPIRED = Code(3006, "subscription expired")
SLOW = Code(3008, "slow")
INSUFFICIENT_STATE = Code(3010, "insufficient state")
FORCE_RECONNECT = Code(3011, "force reconnect")
NO_PONG = Code(3012, "no pong")
TOO_MANY_REQUESTS = Code(3013, "too many requests")
INVALID_TOKEN = Code(3500, "invalid token")
BAD_FRAME = Code(3501, "bad request")
STALE = Code(3502, "stale")
FORCE_NO_RECONNECT = Code(3503, "force disconnect")
INAPPROPRIATE_PROTOCOL = Code(3506, "inappropriate protocol")
CONNECTION_LIMIT = Code(3504, "connection limit")
TOPIC_LIMIT = Code(3505, "channel limit")
NOT_PERMITTED = Code(3507, "permission denied")
NOT_SUPPORTED = Code(3508, "not available")
TOO_MANY_ERRORS = Code(3509, "too many errors")


class CommandError(Exception):
    """A command that is answered with an error; the session goes on."""

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(code.reason)
        self.code = code
        self.detail = detail


class Disconnect(Exception):
    """A message after which the session is closed with a code."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.reason)
        self.code = code


def of_error(code: Code) -> Code:
    """The close code that says the same as an error, for protocols that cannot answer with one."""
    if code in (UNKNOWN_TOPIC, BAD_REQUEST):
        return Code(4404, code.reason)
    return NOT_PERMITTED if code is PERMISSION_DENIED else SERVER_ERROR
