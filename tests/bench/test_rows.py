from __future__ import annotations

import pytest

from tests.bench.__main__ import arguments
from tests.bench.measures import MEASURES
from tests.bench.rows import ROWS, Figure, Row, Spread, as_json

COST = Row("cost", "cost", "µs", Figure("m", "hub", "us"), Figure("m", "peer", "us"), "peer", at_least=10, aim=20)
RATE = Row("rate", "rate", "k/s", Figure("m", "hub", "rate"), Figure("m", "peer", "rate"), "peer", more_is_better=True)
SIZE = Row("size", "size", "kB", Figure("m", "hub", "bytes"), at_most=8, scale=1e-3)


def test_ratios_are_taken_within_each_round() -> None:
    rounds = {"m": {"hub": [{"us": 1.0}, {"us": 4.0}, {"us": 2.0}], "peer": [{"us": 15.0}, {"us": 40.0}, {"us": 60.0}]}}
    assert COST.ratios(rounds) == Spread(15, 10, 30)
    assert COST.figures(rounds) == Spread(2, 1, 4)


def test_more_is_better_turns_the_ratio_round() -> None:
    assert RATE.ratios({"m": {"hub": [{"rate": 30.0}], "peer": [{"rate": 10.0}]}}) == Spread(3, 3, 3)


def test_a_turn_that_failed_takes_its_round_out_of_the_ratio() -> None:
    rounds = {"m": {"hub": [{"us": 1.0}, {}, {"us": 1.0}], "peer": [{"us": 11.0}, {"us": 99.0}, {}]}}
    assert COST.ratios(rounds) == Spread(11, 11, 11)
    assert as_json(COST, rounds)["peer"] == {"median": 55, "min": 11, "max": 99}


@pytest.mark.parametrize(
    ("peer", "verdict"), [(9.9, "missed"), (10.0, "met"), (20.0, "aim met"), (None, "not measured")]
)
def test_verdicts_on_ratios(peer: float | None, verdict: str) -> None:
    rounds = {"m": {"hub": [{"us": 1.0}], "peer": [{"us": peer}] if peer else [{}]}}
    assert COST.verdict(rounds) == verdict


@pytest.mark.parametrize(("size", "verdict"), [(8_000.0, "met"), (8_001.0, "missed")])
def test_verdicts_on_the_hubs_own_figure(size: float, verdict: str) -> None:
    assert SIZE.verdict({"m": {"hub": [{"bytes": size}]}}) == verdict


def test_a_row_without_a_target_is_reported() -> None:
    assert RATE.verdict({"m": {"hub": [{"rate": 1.0}], "peer": [{"rate": 9.0}]}}) == "reported"


def test_every_row_is_made_of_turns_that_are_measured() -> None:
    for row in ROWS:
        for figure in (row.hub, row.against):
            assert figure is None or figure.turn in MEASURES[figure.measure].turns
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--only", "cpu-w8", "cpu-w9"])
    assert "there is no row cpu-w9" in capsys.readouterr().err


def test_settings_of_the_hub_are_name_and_value() -> None:
    assert arguments(["--setting", "LEVEL=INFO", "--setting", "A=b=c"]).settings == {
        "LEVEL": "INFO",
        "A": "b=c",
    }
