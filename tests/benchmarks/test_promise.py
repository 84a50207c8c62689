"""The benchmark of the promise still runs, and its judgement can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.quality import promise


def test_it_runs_on_made_up_scores_and_on_labelled_data(shared_data: Path) -> None:
    """A few rows of each stream: every promise has a row with thresholds that follow and one without."""
    found = promise.run(60_000, Console(quiet=True), smoke=True)
    assert {row["stream"] for row in found["rows"]} == {"made-up drift", "Hadoop", "machines, linear", "machines, gru"}
    assert sum(row["adapts"] for row in found["rows"]) == len(found["rows"]) / 2
    assert len(found["long_anomalies"]) == len(promise.RATES) * 3


def test_a_rate_is_held_to_a_factor_or_to_its_interval() -> None:
    """Twice the promise is missed where many alarms are due; where few are, if chance does not explain it."""
    rng = np.random.default_rng(1)
    kept, missed = rng.random(100_000) < 0.01, rng.random(100_000) < 0.02
    assert promise.judge("", "", kept, 0.01, 1, adapts=True).is_kept
    assert promise.judge("", "", kept, 0.01, 1, adapts=True).tenths == 10
    assert not promise.judge("", "", missed, 0.01, 1, adapts=True).is_kept
    few = np.zeros(100_000, np.bool_)
    few[:20] = True
    assert not promise.judge("", "", few, 0.0001, 1, adapts=True).is_kept
    assert promise.judge("", "", few, 0.0001, 60, adapts=True).is_kept  # one burst, which proves little
