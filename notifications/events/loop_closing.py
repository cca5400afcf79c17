"""Closes what belongs to an event loop together with it: sockets that nobody else knows of."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol


class Closeable(Protocol):
    """What has to be closed before its event loop is."""

    def close(self) -> object: ...


_open: dict[asyncio.AbstractEventLoop, set[Closeable]] = {}


def close_with_loop(resource: Closeable) -> None:
    """Have something of the running loop closed right before the loop is."""
    loop = asyncio.get_running_loop()
    resources = _open.get(loop)
    if resources is None:
        resources = _open[loop] = set()
        _close_before(loop, resources)
    resources.add(resource)


def closed_already(resource: Closeable) -> None:
    """Something of the running loop was closed for good, and is kept no longer."""
    _open.get(asyncio.get_running_loop(), set()).discard(resource)


def forget_closed(of_loops: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop the entries of loops that are closed; other threads may use the dict meanwhile."""
    for loop in list(of_loops):
        if loop.is_closed():
            of_loops.pop(loop, None)


def _close_before(loop: asyncio.AbstractEventLoop, resources: set[Closeable]) -> None:
    # As channels-redis does it, for a loop tells nobody that it is about to be closed.
    close_loop = loop.close

    def close_resources_first() -> None:
        if not loop.is_running():
            loop.close = close_loop  # type: ignore[method-assign]
            del _open[loop]
            for resource in list(resources):
                resource.close()
            # A transport closes its socket in a turn of its own. Where another loop runs in this thread there is none.
            with contextlib.suppress(RuntimeError):
                loop.call_soon(loop.stop)
                loop.run_forever()
        close_loop()

    loop.close = close_resources_first  # type: ignore[method-assign]
