"""The comparison with river's detectors still runs, and says what the documents say, if on less."""

from __future__ import annotations

from rich.console import Console

from benchmarks.quality import drift


def test_changes_are_found_and_nothing_else() -> None:
    """Every change that is there at once is told within two days and nothing in vain, as river's do."""
    found = drift.run(Console(quiet=True), (1,), 6_000, 11.0)
    assert len(found["rows"]) == len(drift.SCENARIOS)
    for row in found["rows"]:
        assert row["offbeat_false"] == 0, row
        assert row["ADWIN_false"] + row["PageHinkley_false"] > 0, row
        if row["is_drift"] and "over 2 days" not in row["scenario"]:
            assert 18 <= row["offbeat_delay_h"] < 48, row
