"""The log of a Blue Gene/L machine, line by line: whether windows of lines with alerts are alarmed.

The model learns hours of normal lines from the log's first half and judges a part of the second, in which ever more
lines are of kinds never seen: a hard case for what was learned once. A window is alarmed if any of its lines is. The
data has no times, so lines lie one second apart. A long hour repeats itself, so its first lines stand for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.outcome import Outcome
from benchmarks.quality.trial import DATA, START_MS, Event, Measures, Setup, attempt
from detectors.judging import count

SECTION: dict[str, Any] = {
    "topic": "bgl", "time": "ts", "tokens": ["event"], "promise": {"false_alarm_rate": 0.001},
    "session": {"by": "machine", "gap": "10m", "max_events": 200},
}  # fmt: skip
WINDOWS = (20, 100, 200)  # lines
_MOST_LINES = 500  # of an hour that are learned: 400,000 of 4,400,000 lines in all
_SMOKE_HOURS, _SMOKE_LINES = 150, slice(23_000, 25_000)  # with the first alerts


def available() -> bool:
    """Whether the labelled data is here."""
    return (DATA / "bgl" / "test_stream.npz").exists()


def run(setup: Setup) -> Outcome:
    """Train, score, judge."""
    from evalkit.data import bgl

    setup.parts([])
    hours, events, labels = bgl()
    most = _MOST_LINES
    if setup.smoke:
        hours, events, labels, most = hours[:_SMOKE_HOURS], events[_SMOKE_LINES], labels[_SMOKE_LINES], 50
    training = (line for n, hour in enumerate(hours) for line in _lines(hour[:most], START_MS + n * 3_600_000))
    trial = attempt(setup, SECTION, training, _lines(events.tolist(), START_MS + len(hours) * 3_600_000))
    measures = judge(trial.records.score, trial.records.anomaly, labels)
    return Outcome("quality-bgl", setup.core, measures, trial.cost, warnings=trial.warnings, whole=not setup.smoke)


def judge(scores: NDArray[np.float64], alarmed: NDArray[np.bool_], labels: NDArray[np.int8]) -> Measures:
    """F1 of windows at the calibrated threshold; lines of unknown label are left out first."""
    from evalkit.sessions import line_windows, session_metrics
    from evalkit.tsad import auc_pr

    found: Measures = {}
    for size in WINDOWS:
        judged = session_metrics(*line_windows(alarmed, labels, size))
        found |= {f"{name}@{size}": judged[name] for name in ("f1", "precision", "recall")}
    found |= {f"auc_pr@{size}": auc_pr(*line_windows(np.nan_to_num(scores), labels, size)) for size in WINDOWS}
    lines = count(alarmed[labels >= 0], labels[labels >= 0] > 0)
    return found | {"kept": lines.false_alarm_rate or 0.0, "alarmed": float(alarmed.mean())}


def _lines(events: Iterable[int] | Sequence[int], start_ms: int) -> Iterator[Event]:
    for second, event in enumerate(events):
        yield {"ts": start_ms + 1_000 * second, "machine": "bgl", "event": f"E{event}"}
