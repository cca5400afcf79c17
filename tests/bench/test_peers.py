from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.bench.loadclient import BenchError, compiler
from tests.bench.peers import Cores, Hub, Redis, Rig, new_label
from tests.bench.stalled import FILLER_BYTES, StalledClients


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """The servers of a benchmark, which raise the limit of open files for themselves."""
    if compiler() is None or Redis.missing():
        pytest.skip("a C compiler or a redis-server is missing")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Rig(tmp_path, Cores.of_this_machine()) as rig:
        yield rig
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_rig_has_a_redis_and_starts_a_server_once(rig: Rig) -> None:
    server = rig.server("c")

    assert rig.server("c") is server
    assert [rig.redis.answers(), server.answers()] == [True, True]
    assert [running.resident() > 0 for running in (rig.redis, server)] == [True, True]


@pytest.mark.parametrize(
    ("events", "fault"), [(1, None), (30, "3 of 3 clients that do not read were disconnected too early")]
)
def test_stalled_clients_leave_what_they_are_sent_to_the_hub(rig: Rig, events: int, fault: str | None) -> None:
    server = rig.server("hub")
    assert isinstance(server, Hub)
    topic = f"bench:{new_label()}-0"

    with pytest.raises(BenchError, match=fault) if fault else nullcontext(), StalledClients(server, topic, 3):
        for _ in range(events):
            server.api("publish", channel=topic, data="x" * FILLER_BYTES)
