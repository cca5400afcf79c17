"""On what machine, and with which versions, something was measured."""

from __future__ import annotations

import os
import platform
import resource
import time
from importlib import metadata
from pathlib import Path

import psutil

from tests.bench.peers import PEERS, Redis, Server

PACKAGES = ("django", "channels", "channels-redis", "uvicorn", "uvloop", "websockets", "msgspec", "redis")


def description() -> dict[str, str | int]:
    """Processor, cores, kernel, memory, and the limit of open files."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "system": _system(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def versions() -> dict[str, str]:
    """Versions of Python, of the packages on the path of an event, and of the peers that are installed."""
    found = {"python": platform.python_version()}
    found.update({package: metadata.version(package) for package in PACKAGES})
    servers: list[type[Server]] = [*PEERS.values(), Redis]
    for server in servers:
        if not server.missing() and (version := server.version()):
            found[server.title] = version
    return found


class Neighbours:
    """How much of the machine others took, between its making and a call of `share`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._taken = self._by_others()

    @staticmethod
    def _by_others() -> float:
        """CPU seconds of everything but this process and its children that have ended; of the hypervisor too."""
        whole = psutil.cpu_times()
        busy = sum(whole) - whole.idle - whole.iowait - whole.guest - whole.guest_nice
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return float(busy - sum(usage.ru_utime + usage.ru_stime for usage in usages))

    def share(self) -> float:
        """Of all cores, from 0 to 1. The children must have ended."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (self._by_others() - self._taken) / seconds)
