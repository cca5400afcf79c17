from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.loadclient import compiler
from tests.bench.peers import Cores, Redis, Rig


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
