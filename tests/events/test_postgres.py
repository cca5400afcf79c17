"""The durable log on a real PostgreSQL: the same tests, in a run of their own with that database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import PROJECT

# What restarts a PostgreSQL has one of its own in any run.
CHOSEN = "(database or ledger or outbox) and not restarted"


@pytest.mark.timeout(300)
def test_the_log_keeps_its_promises_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    # In a folder of its own: pytest closes the shared one to others, in which the server's user has its files.
    folder = f"--basetemp={tmp_path / 'inner'}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", folder, "-k", CHOSEN, "tests/events"],
        cwd=PROJECT,
        env={**os.environ, "DATABASE_URL": postgres_url},
        capture_output=True,
        text=True,
        timeout=290,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert " failed" not in run.stdout
