"""Server machines, 38 numbers a minute each: whether scores rise where the operators saw a fault.

Each machine is a stream of its own, trained on its own first half and judged on the second, minute by minute. VUS-PR
takes no threshold; what the calibration's own threshold gives stands beside it. `mean15` is the same with the mean of a
record's score and the fourteen before it, as a reader of the verdicts could take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.outcome import Outcome, mean_of
from benchmarks.quality.trial import DATA, START_MS, Event, Measures, Setup, attempt
from detectors.judging import count

_MINUTE_MS = 60_000
_SPAN = 15  # minutes, of the causal mean
_SMOKE_ROWS, _SMOKE_CHANNELS = 3_400, 4  # the fewest rows that a session cut into pieces can be learned from
Rows = NDArray[np.float32]


def available() -> bool:
    """Whether the labelled data is here."""
    return any((DATA / "smd").glob("*.npz"))


def run(setup: Setup) -> Outcome:
    """Each machine, and the mean over them."""
    from evalkit.data import smd, smd_machines

    known = smd_machines()
    machines = setup.parts(known)[: 1 if setup.smoke else None]
    parts: dict[str, Measures] = {}
    costs, warnings = [], []
    for machine in machines:
        training, testing, labels = few(*smd(machine)) if setup.smoke else smd(machine)
        columns = [f"n{c:02}" for c in range(training.shape[1])]
        trial = attempt(
            setup, section(columns), events_of(training, columns, 0), events_of(testing, columns, len(training))
        )
        order = np.argsort(trial.records.line, kind="stable")
        parts[machine] = judge(trial.records.score[order], trial.records.anomaly[order], testing, labels)
        costs.append(trial.cost)
        warnings += [f"{machine}: {warning}" for warning in trial.warnings]
    return Outcome(
        "quality-smd", setup.core, mean_of(list(parts.values())), mean_of(costs), parts, warnings,
        whole=machines == known and not setup.smoke,
    )  # fmt: skip


def judge(scores: NDArray[np.float64], alarmed: NDArray[np.bool_], testing: Rows, labels: NDArray[np.int8]) -> Measures:
    """Measures of one machine; a record without a score has the least."""
    from evalkit.tsad import auc_pr, vus_pr, vus_window

    assert len(scores) == len(labels), "a verdict a row"
    scores = np.where(np.isnan(scores), np.nanmin(scores), scores)
    smooth, window = causal_mean(scores, _SPAN), vus_window(testing[:, 0])
    counts = count(alarmed, labels > 0)
    return {
        "vus_pr": vus_pr(scores, labels, window), "vus_pr_mean15": vus_pr(smooth, labels, window),
        "auc_pr": auc_pr(scores, labels), "auc_pr_mean15": auc_pr(smooth, labels),
        "f1": counts.f1 or 0.0, "kept": counts.false_alarm_rate or 0.0,
    }  # fmt: skip


def causal_mean(scores: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """The mean of each value and of the `span` - 1 before it, of fewer at the start.

    >>> causal_mean(np.array([4.0, 2.0, 6.0]), 2).tolist()
    [4.0, 3.0, 4.0]
    """
    total = np.cumsum(np.concatenate([[0.0], scores]))
    at = np.arange(1, len(scores) + 1)
    begin = np.maximum(0, at - span)
    means: NDArray[np.float64] = (total[at] - total[begin]) / (at - begin)
    return means


def section(columns: list[str]) -> dict[str, Any]:
    """The stream of one machine."""
    return {
        "kind": "metrics", "topic": "smd", "time": "ts", "numbers": columns,
        "session": {"by": "machine", "gap": "1h"}, "promise": {"false_alarm_rate": 0.001},
    }  # fmt: skip


def events_of(rows: Rows, columns: list[str], first_minute: int) -> Iterator[Event]:
    """The data has no times: its second half follows its first, a row a minute."""
    for minute, row in enumerate(rows.tolist(), first_minute):
        yield {"ts": START_MS + minute * _MINUTE_MS, "machine": "m", **dict(zip(columns, row, strict=True))}


def few(training: Rows, testing: Rows, labels: NDArray[np.int8]) -> tuple[Rows, Rows, NDArray[np.int8]]:
    """A few channels that vary, over enough rows, with the first fault among them."""
    channels = np.flatnonzero(training[:_SMOKE_ROWS].std(0) > 0)[:_SMOKE_CHANNELS]
    first = max(0, int(np.argmax(labels > 0)) - _SMOKE_ROWS // 2)
    chosen = slice(first, first + _SMOKE_ROWS)
    return training[:_SMOKE_ROWS, channels], testing[chosen, channels], labels[chosen]
