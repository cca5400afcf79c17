"""The comparison finds what it has to find."""

from __future__ import annotations

import pytest

from tests.chaos.ledger import Outcome, Promise
from tests.chaos.records import Account, Kind, Record, compare

PROMISED, UNKNOWN, ROLLED_BACK = Outcome.PROMISED, Outcome.UNKNOWN, Outcome.ROLLED_BACK


def published(*outcomes: Outcome, topic: str = "t") -> dict[tuple[str, str], Promise]:
    """Events a-1, a-2, … that were published at the times 1, 2, …"""
    return {
        (topic, f"a-{number}"): Promise(topic, "a", number, outcome, float(number))
        for number, outcome in enumerate(outcomes, 1)
    }


def joined(offset: int = 0) -> Record:
    return Record(0, Kind.JOINED, "t", 0.0, offset, "e")


def event(offset: int, number: int, *, epoch: str = "e", at: float = 9.0, kind: Kind = Kind.LIVE) -> Record:
    return Record(0, kind, "t", at, offset, epoch, f"a-{number}")


def told(offset: int, *, epoch: str = "e", at: float = 9.0) -> Record:
    return Record(0, Kind.TOLD, "t", at, offset, epoch)


def account(promises: dict[tuple[str, str], Promise], *records: Record, durable: bool = True) -> Account:
    return compare(promises, records, durable=["t"] if durable else [])


def test_two_records_that_agree_hold() -> None:
    found = account(published(PROMISED, UNKNOWN, ROLLED_BACK, PROMISED), joined(), event(1, 1), event(2, 4))

    assert found.holds
    assert (found.clients, found.promised, found.delivered) == (1, 2, 2)


def test_what_is_unknown_may_have_happened() -> None:
    found = account(published(UNKNOWN), joined(), event(1, 1))

    assert found.holds
    assert (found.promised, found.delivered) == (0, 0)


@pytest.mark.parametrize(
    ("records", "field"),
    [
        ([joined(), event(1, 1)], "lost"),
        ([joined(), event(1, 1), event(2, 2), event(3, 1)], "doubled"),
        ([joined(), event(1, 2), event(2, 1)], "disordered"),
        ([joined(), event(2, 1), event(1, 2)], "disordered"),
        ([joined(), event(1, 1), event(2, 2), event(3, 3)], "ghosts"),
        ([joined(), event(1, 1), event(2, 2), event(3, 7)], "ghosts"),
    ],
)
def test_what_does_not_agree_is_found(records: list[Record], field: str) -> None:
    found = account(published(PROMISED, PROMISED, ROLLED_BACK), *records)

    assert not found.holds
    assert getattr(found, field) == 1


@pytest.mark.parametrize(
    "records",
    [
        [joined(), event(1, 1), event(3, 2)],
        [joined(), event(1, 1), event(2, 2, epoch="f")],
        [joined(), event(1, 1), Record(0, Kind.RESUMED, "t", 9.0, 1, "f"), event(2, 2, epoch="f")],
    ],
)
def test_a_hole_and_a_silent_change_of_the_epoch_are_found(records: list[Record]) -> None:
    assert not account(published(PROMISED, PROMISED), *records).holds


def test_clients_that_got_an_event_at_different_places_are_found() -> None:
    others = [Record(1, Kind.JOINED, "t", 0.0, 1, "e"), Record(1, Kind.LIVE, "t", 9.0, 2, "e", "a-1")]

    assert not account(published(PROMISED), joined(), event(1, 1), *others).holds


def test_who_is_told_may_lack_what_was_published_before() -> None:
    promises = published(PROMISED, PROMISED, PROMISED)
    records = [joined(), event(1, 1), told(0, epoch="f", at=2.5), event(1, 3, epoch="f")]

    found = account(promises, *records, durable=False)

    assert found.holds
    assert (found.told, found.excused, found.lost) == (1, 1, 0)


@pytest.mark.parametrize("durable", [True, False])
def test_who_is_told_gets_all_that_was_published_after(durable: bool) -> None:
    promises = published(PROMISED, PROMISED, PROMISED)

    found = account(promises, joined(), event(1, 1), told(0, epoch="f", at=1.5), durable=durable)

    assert not found.holds
    assert found.lost == 2


def test_a_durable_topic_has_no_excuse() -> None:
    found = account(published(PROMISED, PROMISED), joined(), event(1, 1), told(2, at=2.5))

    assert not found.holds
    assert found.lost == 1


def test_recovery_is_over_when_every_client_has_what_was_published_after_a_fault() -> None:
    promises = published(PROMISED, PROMISED)
    second = [
        Record(1, Kind.JOINED, "t", 0.0, 0, "e"),
        Record(1, Kind.RECOVERED, "t", 4.5, 1, "e", "a-1"),
        Record(1, Kind.RECOVERED, "t", 4.5, 2, "e", "a-2"),
    ]

    found = compare(
        promises, [joined(), event(1, 1, at=1.6), event(2, 2, at=2.5), *second], durable=["t"], since=[1.5, 2.9]
    )

    assert found.seconds_to_recover == 3.0
    assert found.recovered == 2
