"""The disk of an embedded hub is full: publishers are told so, nothing is half-written, and it goes on afterwards."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.chaos.companions import Companion
from tests.chaos.ledger import Ledger, Outcome, entries, key_of, promises
from tests.chaos.load import ARRIVAL_SECONDS, Chaos
from tests.chaos.records import compare, read_records
from tests.chaos.site import TOPICS
from tests.servers import Hub, eventually

pytestmark = pytest.mark.timeout(300)

KEY = "the key of this test"
TOPIC = "ledger:disk"
DISK_BYTES = 24 * 2**20


class Disk:
    """Where the hub has its data, and how there comes to be no room for more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, hub: Hub) -> None:
        """Leave no room."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            for size in (2**16, 2**9, 1):
                try:
                    while filler.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self, hub: Hub) -> None:
        """Make room again."""
        (self.folder / "filler").unlink()


class LimitedDisk(Disk):
    """The kernel refuses what the process writes, as it does on a full disk."""

    def fill(self, hub: Hub) -> None:
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def free(self, hub: Hub) -> None:
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(params=["small file system", "limited process"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Where an embedded hub has its data: a disk that can be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limited process":
        yield LimitedDisk(folder)
        return
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system; the limited process shows the same")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here; the limited process shows the same: {done.stderr}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def test_a_full_disk(
    request: pytest.FixtureRequest,
    disk: Disk,
    crowd: Companion,
    chaos: Chaos,
    told: Callable[[dict[str, object]], None],
    tmp_path: Path,
) -> None:
    hub = Hub(tmp_path, HUB_DATA=str(disk.folder / "data"), HUB_TOPICS=TOPICS, HUB_API_KEYS=KEY)
    ledger, number = Ledger(tmp_path / "ledger.jsonl"), 0
    client = httpx.Client(base_url=hub.url, headers={"X-API-Key": KEY}, timeout=30)

    def published() -> bool:
        nonlocal number
        number += 1
        key = key_of("http", number)
        ledger.write(Outcome.ATTEMPTED, TOPIC, "http", number)
        answer = client.post("/api/publish", json={"channel": TOPIC, "data": {"key": key, "pad": "x" * 2_000}})
        result = answer.json().get("result")
        if result is None:
            ledger.write(Outcome.UNKNOWN, TOPIC, "http", number)
            return False
        ledger.write(Outcome.PROMISED, TOPIC, "http", number, offset=result["offset"], epoch=result["epoch"])
        return True

    assert crowd.ask("open", clients=chaos.clients, addresses=[hub.address], topics=[TOPIC], seed=chaos.seed, small=[])[
        "done"
    ]
    assert all(published() for _ in range(30))
    refused, since = 0, []
    for _ in chaos.rounds():
        disk.fill(hub)
        eventually(lambda: not published(), seconds=60)
        refused += 1 + sum(not published() for _ in range(10))
        assert client.get("/health/live").status_code == 200
        disk.free(hub)
        since.append(time.monotonic())
        eventually(published, seconds=60)
        assert all(published() for _ in range(30))
    found = promises(entries(tmp_path / "ledger.jsonl"))
    due = [promise.key for promise in found.values() if promise.outcome is Outcome.PROMISED]
    crowd.ask("wait", wanted={TOPIC: due}, besides=[], seconds=ARRIVAL_SECONDS)
    crowd.ask("close", path=str(tmp_path / "records.jsonl"))
    hub.stop()

    account = compare(found, read_records(tmp_path / "records.jsonl"), durable=[TOPIC], since=since)
    scenario = request.node.name.removeprefix("test_").replace("_", " ")
    told({"scenario": scenario, "seed": chaos.seed, **msgspec.to_builtins(account)})
    assert account.holds, account.problems
    assert refused >= 10
    with closing(sqlite3.connect(disk.folder / "data" / "hub.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        query = "SELECT offset, encoded FROM hub_events_storedevent WHERE topic = ? ORDER BY offset"
        rows = database.execute(query, (TOPIC,)).fetchall()
    assert [offset for offset, _ in rows] == list(range(1, len(rows) + 1))
    written = {msgspec.json.decode(encoded)["data"]["key"] for _, encoded in rows}
    assert written >= set(due)
    assert len(written) == len(rows)
