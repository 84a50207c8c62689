"""A worker under way: between which of the looks at it the measuring goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import steady


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.time, "sleep", lambda _seconds: None)


@pytest.mark.parametrize(
    ("scored", "grown"),
    [
        ([0, 0, 50, 500, 980], (2, 930)),
        ([0, 50, 150, 990, 1000], (2, 940)),
        ([0, 1000], (1, 1000)),
        ([400, 1000], (1, 600)),
    ],
)
def test_from_the_last_look_before_a_tenth(scored: list[int], grown: tuple[int, int]) -> None:
    """Until the first at which nearly all are scored, however few looks lie between."""
    looks: Iterator[tuple[int, int]] = iter(enumerate(scored))
    assert steady.under_way(1000, lambda: next(looks)) == grown


def test_who_looks_too_late_has_measured_nothing() -> None:
    """It says so, and no rate comes of it."""
    with pytest.raises(RuntimeError, match="had scored all 1,000 records before it was looked at: measure more"):
        steady.under_way(1000, lambda: (1.0, 990.0))
