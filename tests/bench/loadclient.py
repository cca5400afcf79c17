"""The compiled load client: made when it is needed, and driven over its standard input and output."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOURCES = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"hub-bench-{os.getuid()}"
PAYLOAD_BYTES = 200


class BenchError(Exception):
    """A measurement that could not be made; says why."""


def compiler() -> str | None:
    """The machine's C compiler, or None."""
    return next((found for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (found := shutil.which(name))), None)


def compiled(name: str, *, folder: Path = CACHE) -> Path:
    """The program made of `name`.c, compiled into `folder` unless that has happened already.

    Raises BenchError when there is no compiler, or when it refuses the source.
    """
    source = SOURCES / f"{name}.c"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(source.read_bytes() + (SOURCES / "wire.h").read_bytes()).hexdigest()
    program = folder / f"{name}-{digest[:16]}"
    if program.exists():
        return program
    found = compiler()
    if found is None:
        raise BenchError("the load client is written in C, and there is no C compiler: install cc, gcc or clang")
    unfinished = program.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [found, "-O2", "-std=gnu11", "-o", str(unfinished), str(source)], capture_output=True, text=True
    )
    if done.returncode:
        raise BenchError(f"{source.name} was not compiled:\n{done.stderr}")
    unfinished.rename(program)
    return program


class LoadClient:
    """A running load client; loadclient.c has its options and commands."""

    def __init__(self, arguments: Sequence[str], *, core: int | None = None, folder: Path = CACHE) -> None:
        program = compiled("loadclient", folder=folder)
        self.process = subprocess.Popen(
            [str(program), *arguments, "--payload", str(PAYLOAD_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
        )
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})

    def command(self, command: str, *, timeout: float = 120) -> dict[str, Any]:
        """Give a command and return its result. Raises BenchError when none comes within `timeout` seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(f"the load client ended: {self._complaint()}") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0, deadline - time.monotonic())):
                self.process.kill()
                raise BenchError(f"the load client did not finish {command!r} within {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"the load client ended: {self._complaint()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def _complaint(self) -> str:
        assert self.process.stderr is not None
        self.process.kill()
        return self.process.stderr.read().strip() or f"exit code {self.process.wait()}"

    def subscribe(self, count: int) -> dict[str, Any]:
        """Open so many subscribers. Raises BenchError unless every one becomes ready."""
        return self._all_ready(self.command(f"subscribe {count}", timeout=310), count)

    def join_publishers(self) -> None:
        """Open the publishing connections. Raises BenchError unless every one becomes ready."""
        result = self.command("publishers")
        if result["failed"]:
            raise BenchError(f"a publisher was not let in: {result['note']}")

    @staticmethod
    def _all_ready(result: dict[str, Any], count: int) -> dict[str, Any]:
        if result["ready"] != count:
            raise BenchError(f"only {result['ready']} of {count} connections became ready: {result['note']}")
        return result

    def quit(self) -> None:
        """Close all connections and end."""
        try:
            self.process.communicate("quit\n", timeout=20)
        except (subprocess.TimeoutExpired, ValueError, BrokenPipeError):
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.quit()


def fault_of(result: dict[str, Any]) -> str | None:
    """What is wrong with the deliveries of a phase, or None when each receiver got each message once and in order."""
    faults = []
    if result["received"] != result["expected"]:
        faults.append(f"{result['received']} of {result['expected']} deliveries arrived")
    counted = ("duplicates", "reordered", "foreign", "refused", "closed")
    faults += [f"{result[name]} {name}" for name in counted if result[name]]
    if faults and result["note"]:
        faults.append(result["note"])
    return ", ".join(faults) or None
