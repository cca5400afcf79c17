"""Runs the benchmark: `python -m tests.bench [--quick] [--rounds N] [--only ROW…]`, in the root of the repository."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import machine, report
from tests.bench.loadclient import BenchError, compiled
from tests.bench.measures import MEASURES, Scale, Turn, Values, missing
from tests.bench.peers import Cores, Rig
from tests.bench.rows import ROWS, by_name

Rounds = dict[str, dict[str, list[Values]]]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures what fan-out costs in the hub and in its peers.",
        epilog="Rows: " + ", ".join(row.name for row in ROWS),
    )
    parser.add_argument("--quick", action="store_true", help="one short round, in under two minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds in which all take turns (3; with --quick 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="only these rows of the table")
    parser.add_argument(
        "--output", type=Path, default=Path("var/bench"), metavar="FOLDER", help="for results.json and results.png"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="of the hub's environment, besides its own"
    )
    parsed = parser.parse_args(words)
    parsed.settings = dict(setting.split("=", 1) for setting in parsed.setting if "=" in setting)
    if len(parsed.settings) != len(parsed.setting):
        parser.error("--setting takes NAME=VALUE, each name once")
    parsed.rounds = parsed.rounds or (1 if parsed.quick else 3)
    if unknown := set(parsed.only) - {row.name for row in ROWS}:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}")
    return parsed


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201 - what this program is for


def measure(rig: Rig, scale: Scale, names: Sequence[str], count: int) -> tuple[Rounds, list[str]]:
    """All turns of these measurements in so many rounds, and what went wrong in them.

    A turn that failed leaves no values in its round, and does not stop the others.
    """
    rounds: Rounds = defaultdict(lambda: defaultdict(list))
    faults: list[str] = []
    absent = {turn: why for name in names for turn in MEASURES[name].turns if (why := missing(turn))}
    for turn, why in absent.items():
        say(f"left out: {turn}, as this machine has no {why}")
    for number in range(1, count + 1):
        for name in names:
            for turn in MEASURES[name].turns:
                if turn in absent:
                    continue
                began = time.monotonic()
                values: Values = {}
                try:
                    values = MEASURES[name].run(Turn(rig, scale, faults), turn)
                    outcome = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
                except BenchError as error:
                    faults.append(f"{name} of {turn}: {error}")
                    outcome = f"FAILED: {error}"
                rounds[name][turn].append(values)
                say(f"[{number}/{count}] {name:<11} {turn:<16} {time.monotonic() - began:5.1f} s  {outcome}")
    return rounds, faults


def main() -> int:
    """Measure, print the table, and write the results. The exit code tells of faults, not of missed targets."""
    options = arguments()
    rows = by_name(options.only)
    names = [name for name in MEASURES if any(name in row.measures for row in rows)]
    scale = Scale.quick() if options.quick else Scale.whole()
    began, neighbours = time.monotonic(), machine.Neighbours()
    try:
        compiled("loadclient")
        with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
            # nginx's worker is another user.
            Path(folder).chmod(0o755)
            with Rig(Path(folder), Cores.of_this_machine(), options.settings) as rig:
                rounds, faults = measure(rig, scale, names, options.rounds)
    except BenchError as error:
        say(str(error))
        return 2
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "quick": options.quick,
        "rounds": options.rounds,
        "settings": options.settings,
        "machine": machine.description(),
        "others": round(neighbours.share(), 4),
        "versions": machine.versions(),
        "faults": faults,
        "measures": rounds,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.json"
    file.write_text(json.dumps(report.with_rows(results, rows), indent=1) + "\n")
    say("\n" + report.table(results, rows))
    plotted = report.plot(results, options.output / "results.png")
    say(f"\n{file} written" + (f", and {plotted}" if plotted else "; no plot: `pip install -e '.[bench]'` brings one"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
