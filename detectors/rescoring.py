"""The second stage: a heavier core looks again at what the first finds strange, as often as its budget lets it.

It scores the session's last events as the row keeps them, so it needs no state of its own. Only cores that see no
further than that can serve so: what they say is then what they would have said of the whole session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.contexts import Window, replay
from detectors.parts import Parts, SecondStage
from detectors.passes import Budget
from detectors.process import Verdicts
from detectors.rows import PartitionState, SessionRows
from models.runtime import F32


@dataclass(frozen=True)
class Rescore:
    """What the second stage says of an anomaly: its score, how often normal data looks so, and whether it agrees."""

    core: str
    score: float
    p_value: float
    confirmed: bool


@dataclass(frozen=True)
class Rescored:
    """Of a slice: records and session verdicts that were looked at again, by their numbers, and how many were not."""

    records: dict[int, Rescore]
    sessions: dict[int, Rescore]
    skipped: int = 0

    def __iter__(self) -> Iterator[Rescore]:
        return iter([*self.records.values(), *self.sessions.values()])


NOTHING = Rescored({}, {})


def rescore(
    verdicts: Verdicts, rows: SessionRows, state: PartitionState, parts: Parts
) -> tuple[Rescored, PartitionState]:
    """Look again at a slice's anomalies, in the order they were found.

    A pass is a window through the core. In each thousand offsets of the source the first records have theirs until the
    budget is spent, and likewise the first sessions, by their last records; what comes after is counted. A session
    longer than the context is not looked at as a whole, only its records are.

    Parameters
    ----------
    rows
        Those before the slice.
    state
        After the slice.
    """
    second = None if parts.learned is None or parts.second is None else parts.learned.second
    if second is None or not (verdicts.anomaly.any() or verdicts.ends.anomaly.any()):
        return NOTHING, state
    walk, ends = verdicts.walk, verdicts.ends
    records = np.flatnonzero(verdicts.anomaly)
    sessions = np.flatnonzero(ends.anomaly & (walk.ended_events[ends.operation] <= parts.shape.context))
    of_records, of_sessions = (Budget(*spent).since(state.next_offset) for spent in state.rescoring)
    records = of_records.first(records, verdicts.events.offsets[records], parts.passes)
    sessions = of_sessions.first(sessions, ends.last_offset[sessions], parts.passes)
    operations = np.concatenate([walk.of_events[records], ends.operation[sessions]])
    is_record = np.arange(len(operations)) < len(records)
    scores = _scores(verdicts, operations, is_record, rows, second, parts)
    rescored = Rescored(
        _judge(records, scores[is_record], second.records, second.core, parts.rate),
        _judge(sessions, scores[~is_record], second.sessions, second.core, parts.rate),
        int(verdicts.anomaly.sum() + ends.anomaly.sum()) - len(scores),
    )  # fmt: skip
    return rescored, replace(state, rescoring=(of_records.spent, of_sessions.spent))


def _scores(
    verdicts: Verdicts, operations: NDArray[Any], is_record: NDArray[np.bool_], rows: SessionRows, second: SecondStage,
    parts: Parts,
) -> F32:  # fmt: skip
    """Of each operation: a record's own score, a session's largest with that of its end."""
    if not len(operations):
        return np.empty(0, np.float32)
    windows = [
        Window.before(verdicts, operation, rows, itself=itself).last(parts.shape.context + itself)
        for operation, itself in zip(operations.tolist(), is_record.tolist(), strict=True)
    ]
    replayed = replay(windows, second.model, second.width, parts)
    last = np.append(replayed.starts[1:], len(replayed.score)) - 1
    worst = np.maximum(np.maximum.reduceat(replayed.score, replayed.starts), replayed.end_surprise)
    return np.where(is_record, replayed.score[last], worst)


def _judge(
    numbers: NDArray[np.intp], scores: F32, calibration: Calibration, core: str, rate: float
) -> dict[int, Rescore]:
    found = zip(numbers.tolist(), scores.tolist(), calibration.p_values(scores).tolist(), strict=True)
    return {number: Rescore(core, score, p_value, p_value <= rate) for number, score, p_value in found}
