"""The storms of `make test`: faults of every kind on a broker of its own, and nothing is lost, doubled or wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pipeline.failpoints import POINTS
from tests.chaos.schedule import FAULTS, make_schedule
from tests.chaos.storm import Plan, Report, Storm

SEED = 1


def storm(delivery: str, seconds: int, folder: Path) -> Report:
    """Run one and have its checks hold."""
    faults = make_schedule(SEED, seconds, delivery, POINTS)
    report = asyncio.run(Storm(Plan(SEED, seconds, delivery, faults), folder).run())
    print(report.line())
    assert report.passed, str(report)
    return report


def test_a_storm_changes_nothing(kafka: None, tmp_path: Path) -> None:
    """After every kind of fault and a crash at every point, rows, verdicts and offsets are an uninterrupted run's."""
    report = storm("at_least_once", 100, tmp_path)
    assert report.done.keys() == FAULTS.keys()
    assert report.missed == set(), str(report)
    assert report.records > 50_000


def test_a_storm_doubles_nothing_under_exactly_once(kafka: None, tmp_path: Path) -> None:
    """The same with outputs in the transaction: readers at read_committed see each once."""
    report = storm("exactly_once", 50, tmp_path)
    assert report.doubled == 0
    assert report.records > 20_000
