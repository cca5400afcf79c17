"""The processes of these tests that publish and subscribe, as the test drives them."""

from __future__ import annotations

import json
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.servers import HubProcess


class Companion(HubProcess):
    """A process that takes commands as lines of JSON and answers each with another; its log has its errors."""

    def __init__(self, module: str, folder: Path, environment: dict[str, str], *, name: str) -> None:
        super().__init__(
            ["-m", module],
            folder,
            environment,
            name=name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("ab"),
        )

    def tell(self, what: str, **command: Any) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **command}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, *, seconds: float = 60) -> dict[str, Any]:
        """The answer to the command that was given first among those not yet answered."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if readable else b""
        if not line:
            pytest.fail(f"{self.log.name} does not answer ({self.process.poll()}):\n{self.output}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, what: str, *, patience: float = 90, **command: Any) -> dict[str, Any]:
        """Give a command and return the answer, for which it may take so many seconds."""
        self.tell(what, **command)
        return self.answer(seconds=patience)

    def close(self) -> None:
        """End the process, which ends when there are no more commands."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()


def publishers(folder: Path, environment: dict[str, str], *, name: str = "publishers") -> Companion:
    """A process of tests.chaos.publishers."""
    return Companion("tests.chaos.publishers", folder, environment, name=name)


def subscribers(folder: Path, *, name: str = "subscribers") -> Companion:
    """A process of tests.chaos.subscribers."""
    return Companion("tests.chaos.subscribers", folder, {}, name=name)
