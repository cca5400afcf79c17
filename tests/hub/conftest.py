from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import HubProcess


@pytest.fixture(autouse=True)
def _none_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what a failed test has started; what a fixture started for several tests is its own to stop."""
    started: list[HubProcess] = []
    start = HubProcess.__init__

    def noted(self: HubProcess, *args: object, **kwargs: object) -> None:
        start(self, *args, **kwargs)  # type: ignore[arg-type]
        started.append(self)

    monkeypatch.setattr(HubProcess, "__init__", noted)
    yield
    for process in started:
        if process.process.poll() is None:
            process.kill()
