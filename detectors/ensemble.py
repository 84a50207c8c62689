"""Several cores as one: each says how strange a record is in its own terms, and calibration makes these terms one.

A nat of surprise means something else to each core, but a p-value means the same to all. So each has a calibration of
its own scores, and the ensemble's score is the mean of minus the logarithms of its members' p-values. That of a
geometric mean of p-values, times e, is a p-value again however the members depend on each other; but this is no reason
to trust it further than other scores, for it is a score like any other here: what is alarmed is decided by
the calibration of the ensemble's own scores of held-back sessions.

References
----------
Vovk and Wang 2020, "Combining p-values via averaging", Biometrika 107(4), doi:10.1093/biomet/asaa027.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.calibration import Calibration
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime
from models.runtime import F32, Runtime, Scores
from models.seasonal import SeasonalRuntime


@dataclass(frozen=True)
class Member:
    """One core of an ensemble.

    Attributes
    ----------
    runtime
        What serves it.
    records
        Of its own scores of records.
    width
        Numbers that a row keeps of it.
    reads
        Of these, those that its heads read.
    """

    runtime: Runtime
    records: Calibration
    width: int
    reads: int

    @property
    def predicts(self) -> bool:
        """Whether it expects tokens, and the end of a session."""
        of_numbers_alone = isinstance(self.runtime, ForecastRuntime) and not self.runtime.spec.sizes
        return not (isinstance(self.runtime, LinearRuntime | SeasonalRuntime) or of_numbers_alone)

    def strangeness(self, scores: F32) -> NDArray[np.float64]:
        """(n,) minus log p-values of (n,) scores; beyond all that calibrates it still grows, so that order is kept."""
        top = float(self.records.levels[-1]) if self.records.count else 0.0
        out = np.empty(len(scores))
        _strangeness(scores, self.records.p_values(scores), top, out)
        return out


class Ensemble:
    """Serves members as `models.runtime.Runtime` says; a row's state is theirs, one after the other.

    What a field adds to a record's score is its share of the surprise of the member that finds the record strangest.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.resumes = False  # members tell what heads read, and rows may hold more
        self.name = "+".join(dict.fromkeys(m.runtime.name for m in members))

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says."""
        after, found, low = np.array(hidden, np.float32, order="C"), [], 0
        for member in self.members:
            own = np.ascontiguousarray(hidden[:, low : low + member.width])
            given = (kind, row, record, first, tokens, log_gap, own, among, numbers, tails, time_ms)
            found.append(scores := member.runtime.score_and_step(*given))
            after[:, low : low + member.width] = scores.hidden
            low += member.width
        ends = [m.strangeness(s.end_surprise) for m, s in zip(self.members, found, strict=True) if m.predicts]
        return Scores(
            self._shared_out([scores.surprise for scores in found]), np.hstack([scores.states for scores in found]),
            _mean(ends).astype(np.float32) if ends else np.zeros(len(kind), np.float32), after,
        )  # fmt: skip

    def _shared_out(self, surprises: list[F32]) -> F32:
        """(n, F) what each field adds to the ensemble's score."""
        totals = [sum_fields(surprise) for surprise in surprises]
        strange = [m.strangeness(total) for m, total in zip(self.members, totals, strict=True)]
        loudest = np.argmax(np.stack(strange), axis=0)
        # Below 0 is what is less strange than usual; shared out with it, a small sum would give enormous parts.
        surprise = np.maximum(np.choose(loudest[:, None], surprises).astype(np.float64), 0.0)
        total = sum_fields(surprise)
        known = total > 0
        shares = np.full(surprise.shape, 1 / surprise.shape[1])  # where no field stands out
        shares[known] = surprise[known] / total[known, None]
        return (_mean(strange)[:, None] * shares).astype(np.float32)

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says: of the mean of what the members expect."""
        expected, low = [], 0
        for member in self.members:
            if member.predicts:
                expected.append(member.runtime.log_probabilities(states[:, low : low + member.reads]))
            low += member.reads
        with np.errstate(divide="ignore"):  # what none expects at all
            return [np.log(_mean([np.exp(p) for p in of_field])) for of_field in zip(*expected, strict=True)]

    def intervals(self, states: F32) -> list[tuple[float, float, float] | None]:
        """Where the first member that forecasts numbers expects them, by what (R,) all read; of none nothing."""
        low = 0
        for member in self.members:
            if isinstance(member.runtime, LinearRuntime | SeasonalRuntime | ForecastRuntime):
                return member.runtime.intervals(states[low : low + member.reads])
            low += member.reads
        return []


def sum_fields(surprise: NDArray[Any]) -> NDArray[Any]:
    """(n,) sums of (n, F), field by field, so that a sum never depends on numpy's blocking."""
    total = surprise[:, 0].copy()
    for f in range(1, surprise.shape[1]):
        total += surprise[:, f]
    return total


def _mean(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Element by element, member by member."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total / len(parts)


@njit(cache=True)
def _strangeness(scores, p_values, top, out):
    """One scalar logarithm each, so no record's bits depend on its neighbours."""
    for i in range(len(scores)):
        out[i] = math.log1p(max(scores[i] - top, 0.0)) - math.log(p_values[i])
