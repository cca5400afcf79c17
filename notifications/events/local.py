"""Which process owns the memory log, and how other processes of the machine reach it.

In the embedded mode one process holds the logs and the channel layer in its memory. Any other process that is
started beside it with the same settings (a shell, a command, a second worker) is a client of its Unix socket.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import msgspec

from notifications.events import conf
from notifications.events.exceptions import LogUnavailable

_owner_pid: int | None = None
MAX_LINE_BYTES = 64 * 1024 * 1024
NOBODY_ANSWERS = "no hub process answers on {}: start it with `manage.py runhub`"


def become_owner() -> None:
    """Declare that this process owns the memory log; called once by the hub's server process."""
    global _owner_pid
    _owner_pid = os.getpid()


def resign() -> None:
    """Take `become_owner()` back, when the server stops."""
    global _owner_pid
    _owner_pid = None


def is_remote() -> bool:
    """Whether the memory log lives in another process, to be reached through `HUB_SOCKET`."""
    # Compared by process id: a child forked from the owner has only a dead copy of its memory.
    return bool(conf.get("HUB_SOCKET")) and _owner_pid != os.getpid()


class OwnerClient:
    """A synchronous client of the process that owns the memory log; thread-safe, reconnects by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0

    def call(self, operation: str, /, **arguments: Any) -> Any:
        """The result of `operation` in the owning process. Raises LogUnavailable when no such process answers."""
        request = msgspec.json.encode({"operation": operation, "arguments": arguments}) + b"\n"
        with self._lock:
            try:
                answer = self._exchange(request)
            except BaseException as error:
                # Whatever it was, its answer may still come, and must not be taken for that of the next call.
                self._close()
                if isinstance(error, OSError):
                    raise LogUnavailable(NOBODY_ANSWERS.format(conf.get("HUB_SOCKET"))) from error
                raise
        if "error" in answer:
            raise LogUnavailable(f"the hub process refused: {answer['error']}")
        return answer.get("result")

    def _exchange(self, request: bytes) -> dict[str, Any]:
        if self._pid != os.getpid():  # after a fork the connection belongs to the parent
            self._socket, self._pid = None, os.getpid()
        fresh = self._socket is None
        try:
            return self._send(request)
        except BrokenPipeError:
            if fresh:
                raise
            # The hub was restarted since the last call: nobody has read this. A connection that is lost later may
            # have brought its request, which must not be made twice.
            self._close()
            return self._send(request)

    def _send(self, request: bytes) -> dict[str, Any]:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(5)
            connection.connect(conf.get("HUB_SOCKET"))
            self._socket = connection
        self._socket.sendall(request)
        received = bytearray()
        while not received.endswith(b"\n"):
            chunk = self._socket.recv(65_536)
            if not chunk:
                raise ConnectionResetError("the hub process closed the connection")
            received += chunk
        answer: dict[str, Any] = msgspec.json.decode(received)
        return answer

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


owner = OwnerClient()
