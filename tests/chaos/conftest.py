"""Options of these tests, the site that they share, and their report."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.companions import Companion, publishers, subscribers
from tests.chaos.load import Chaos, Load
from tests.chaos.site import Postgres, Site
from tests.servers import RedisServer, redis_server_binary, required

COLUMNS = (
    "scenario",
    "clients",
    "promised",
    "delivered",
    "doubled",
    "lost",
    "ghosts",
    "disordered",
    "recovered",
    "told",
    "excused",
    "seconds_to_recover",
)

_reports = pytest.StashKey[list[dict[str, object]]]()
_seed = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--seed", type=int, help="what decides when faults come, and whom they meet: of an earlier run")
    group.addoption("--chaos-report", type=Path, help="file to which each scenario's line of JSON is appended")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run these tests in one process when they are asked for by themselves, as their report is made there."""
    config.option.numprocesses, config.option.dist = None, "no"


def seed_of(config: pytest.Config) -> int:
    """The seed of this run: the one that was given, the same each time in short runs, a new one in long ones."""
    if _seed not in config.stash:
        given = config.getoption("seed", None)
        fresh = random.SystemRandom().randrange(10**6) if config.getoption("long", False) else 1
        config.stash[_seed] = fresh if given is None else given
    return config.stash[_seed]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _seed not in config.stash:
        return
    reports = config.stash.get(_reports, [])
    terminalreporter.section(
        f"chaos: replay with --seed {seed_of(config)}{' --long' * config.getoption('long', False)}"
    )
    lines = [[name.replace("_", " ") for name in COLUMNS]]
    lines += [[str(report.get(name, "")) for name in COLUMNS] for report in reports]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        terminalreporter.write_line("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for report in reports:
        terminalreporter.write_line(json.dumps(report))


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest) -> Chaos:
    """How long and how hard the scenarios of this run are."""
    return Chaos(long=request.config.getoption("long", False), seed=seed_of(request.config))


@pytest.fixture(scope="session")
def told(request: pytest.FixtureRequest) -> Callable[[dict[str, object]], None]:
    """Takes the report of a scenario."""
    reports = request.config.stash.setdefault(_reports, [])
    file: Path | None = request.config.getoption("chaos_report", None)

    def tell(report: dict[str, object]) -> None:
        reports.append(report)
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps(report) + "\n")

    return tell


@pytest.fixture(scope="package")
def whole_site(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Site]:
    """A site that all scenarios share, each of which leaves it whole."""
    binary = redis_server_binary()
    if binary is None:
        required("a redis-server")
    folder = tmp_path_factory.mktemp("chaos")
    redis_server = RedisServer(binary, tmp_path_factory.mktemp("chaos-redis"))
    running = Site(folder, redis_server, Postgres(postgres_url))
    try:
        running.begin()
        yield running
    finally:
        running.stop()
        redis_server.stop()


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """The site, whole."""
    yield whole_site
    whole_site.restore()


@pytest.fixture(scope="package")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Companion]:
    """The process of the subscribers."""
    process = subscribers(tmp_path_factory.mktemp("subscribers"))
    yield process
    process.close()


@pytest.fixture(scope="package")
def producers(whole_site: Site) -> Iterator[Companion]:
    """The process of the publishers."""
    process = publishers(whole_site.folder, whole_site.environment)
    yield process
    process.close()


@pytest.fixture
def load(
    request: pytest.FixtureRequest,
    site: Site,
    crowd: Companion,
    producers: Companion,
    chaos: Chaos,
    told: Callable[[dict[str, object]], None],
    tmp_path: Path,
) -> Load:
    """Publishers and subscribers for one scenario."""
    name = request.node.name.removeprefix("test_").replace("_", " ")
    return Load(name, chaos, site, producers, crowd, tmp_path, told)
