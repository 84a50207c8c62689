"""Scores of sessions that a model never saw, as a worker would have given them: what calibration goes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.crossfit import raised_to
from detectors.history import Chosen, History, Partition
from detectors.parts import Parts
from detectors.replay import SLICE, Numbered, replay
from detectors.segments import BySegment, calibrate_segments, places_of
from features.sessions import END_INPUT, LATE, STEP
from models.runtime import F32
from models.sampling import without_the_strangest


@dataclass(frozen=True)
class HeldBack:
    """Scores of sessions that a model never saw, with the numbers that these have in the history.

    Attributes
    ----------
    records, of_record
        (n,) float32 scores of records, and (n,) int32 the session that each belongs to.
    sessions, of_session
        (E,) float32 scores of sessions that ended, and (E,) int32 which these are.
    record_segments, session_segments
        (n,) and (E,) names of their segments, or None.
    """

    records: F32
    of_record: NDArray[np.int32]
    sessions: F32
    of_session: NDArray[np.int32]
    record_segments: NDArray[Any]
    session_segments: NDArray[Any]

    @classmethod
    def concatenate(cls, parts: list[HeldBack]) -> HeldBack:
        """One part after the other, of which there is one."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def without_the_strangest(self, share: float) -> HeldBack:
        """The same without that share of the sessions whose strangest records are the strangest, by training's rule."""
        numbers, place = np.unique(self.of_record, return_inverse=True)
        worst = np.full(len(numbers), -np.inf)
        np.maximum.at(worst, place, self.records)
        left_out = numbers[~without_the_strangest(worst, share)]
        kept, ended = ~np.isin(self.of_record, left_out), ~np.isin(self.of_session, left_out)
        return HeldBack(
            self.records[kept], self.of_record[kept], self.sessions[ended], self.of_session[ended],
            self.record_segments[kept], self.session_segments[ended],
        )  # fmt: skip

    def raised_to(self, own: HeldBack) -> HeldBack:
        """The same with no score rarer, in its segment, than the model that serves finds it; `own` are its scores."""

        def raised(scores: F32, segments: NDArray[Any], own: F32, of_own: NDArray[Any]) -> F32:
            result, there = scores.copy(), places_of(of_own.tolist())
            for segment, here in places_of(segments.tolist()).items():
                result[here] = raised_to(scores[here], own[there.get(segment, [])])
            return result

        return replace(
            self,
            records=raised(self.records, self.record_segments, own.records, own.record_segments),
            sessions=raised(self.sessions, self.session_segments, own.sessions, own.session_segments),
        )

    def with_sessions(self, scores: F32) -> HeldBack:
        """The same with other scores of the same sessions."""
        return replace(self, sessions=scores)

    def calibrations(self) -> tuple[Calibration, Calibration]:
        """Of records, and of sessions."""
        return Calibration.learn(self.records), Calibration.learn(self.sessions)

    def by_segment(self, rate: float) -> tuple[BySegment, BySegment]:
        """Calibrations of the segments that have enough scores, of records and of sessions."""
        return (
            calibrate_segments(self.records, self.record_segments.tolist(), rate),
            calibrate_segments(self.sessions, self.session_segments.tolist(), rate),
        )


def score_held_back(history: History, held_back: Chosen, parts: Parts, most: int = SLICE) -> HeldBack:
    """Score a history as a worker would, and keep the scores of the sessions held back.

    Parameters
    ----------
    held_back
        (S,) which sessions; those that the input cut off have no score of their end.
    most
        Events scored at once.
    """
    return HeldBack.concatenate([s for p in history.partitions for s in _scores(p, held_back, parts, most)])


def _scores(partition: Partition, held_back: Chosen, parts: Parts, most: int) -> Iterator[HeldBack]:
    walk, session = partition.walk, partition.session
    ends = np.flatnonzero((walk.kind != STEP) & (walk.kind != LATE))
    of_steps, of_ends = (Numbered(walk.row[part], session[part]) for part in (walk.steps, ends))
    for replayed in replay(partition.arrived, parts, most):
        verdicts, walk = replayed.verdicts, replayed.verdicts.walk
        of_record = of_steps.take(replayed.names[walk.row[walk.steps]])
        kept = held_back[of_record]
        in_order = np.argsort(verdicts.ends.operation)
        ended = verdicts.ends.operation[in_order]
        of_session = of_ends.take(replayed.names[walk.row[ended]])
        counted = held_back[of_session] & (walk.kind[ended] != END_INPUT)
        records = walk.record[walk.steps[kept]]
        segments = np.array(verdicts.events.segments or [None] * len(verdicts.events), object)
        of_ended = np.array(verdicts.ends.segment, object)
        yield HeldBack(
            verdicts.score[records], of_record[kept], verdicts.ends.score[in_order[counted]], of_session[counted],
            segments[records], of_ended[in_order[counted]],
        )  # fmt: skip
