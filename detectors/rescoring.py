"""The second stage: a heavier core looks again at what the first finds strange, as often as its budget lets it.

It scores the session's last events as the row keeps them, so it needs no state of its own. Only cores that see no
further than that can serve so: what they say is then what they would have said of the whole session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from detectors.calibration import Calibration
from detectors.contexts import Window, replay
from detectors.parts import Parts, SecondStage
from detectors.process import Verdicts
from detectors.rows import PartitionState, SessionRows

BLOCK = 1_000  # offsets that a budget is for


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

    A pass is a window through the core. In each thousand offsets of the source the first anomalies have theirs until
    the budget is spent; what comes after is counted.

    Parameters
    ----------
    rows
        Those before the slice.
    """
    second = None if parts.learned is None else parts.learned.second
    found = [(int(verdicts.walk.of_events[i]), True, i) for i in np.flatnonzero(verdicts.anomaly).tolist()]
    found += [(int(verdicts.ends.operation[e]), False, e) for e in np.flatnonzero(verdicts.ends.anomaly).tolist()]
    if second is None or not found:
        return NOTHING, state
    (block, spent), chosen = state.rescoring, []
    if block * BLOCK > state.next_offset:  # the source was made anew, or its offset reset
        block, spent = 0, 0
    for operation, is_record, number in sorted(found):
        seen = int(verdicts.walk.record[operation])
        if seen >= 0 and len(verdicts.events) and (now := int(verdicts.events.offsets[seen]) // BLOCK) > block:
            block, spent = now, 0
        if spent < parts.passes:
            chosen.append((operation, is_record, number))
            spent += 1
    scores = _scores(verdicts, [(operation, is_record) for operation, is_record, _ in chosen], rows, second, parts)
    of_records: dict[int, Rescore] = {}
    of_sessions: dict[int, Rescore] = {}
    for (_, is_record, number), score in zip(chosen, scores, strict=True):
        where, own = (of_records, second.records) if is_record else (of_sessions, second.sessions)
        where[number] = _judge(second.core, score, own, parts.rate)
    return Rescored(of_records, of_sessions, len(found) - len(chosen)), replace(state, rescoring=(block, spent))


def _scores(
    verdicts: Verdicts, chosen: list[tuple[int, bool]], rows: SessionRows, second: SecondStage, parts: Parts
) -> list[np.float32]:
    """Of each operation: a record's own score, a session's largest with that of its end."""
    if not chosen:
        return []
    windows = [
        Window.before(verdicts, operation, rows, itself=is_record).last(parts.shape.context + is_record)
        for operation, is_record in chosen
    ]
    replayed = replay(windows, second.model, second.width, parts)
    last = np.append(replayed.starts[1:], len(replayed.score)) - 1
    worst = np.maximum(np.maximum.reduceat(replayed.score, replayed.starts), replayed.end_surprise)
    return [
        replayed.score[last[k]] if is_record else worst[k] for k, (_, is_record) in enumerate(chosen)
    ]  # fmt: skip


def _judge(core: str, score: np.float32, calibration: Calibration, rate: float) -> Rescore:
    p_value = float(calibration.p_values(np.array([score], np.float32))[0])
    return Rescore(core, float(score), p_value, p_value <= rate)
