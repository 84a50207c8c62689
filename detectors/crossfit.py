"""Cross-fitting: every session is scored by a model that never saw it, so that all of them calibrate.

A fifth held back wastes four fifths of the sessions. Instead they are cut into blocks of time; for each a model learns
from the others and scores it, and the scores of all blocks together make the calibration of the model that learned
from everything. That takes as many trainings more as there are blocks, so it is for histories of few sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration

FOLDS = 5
# With more sessions the trainings cost more than they give: a fifth of these is enough for one in 1,300.
MOST_SESSIONS = 20_000
_ENOUGH_ALARMS = 3  # expected among the held-back sessions, for their quantile to be more than a lottery


class Scores(NamedTuple):
    """(r,) scores of records and (s,) of ended sessions, as they happened."""

    records: NDArray[np.float32]
    sessions: NDArray[np.float32]


@dataclass(frozen=True)
class CrossFitted:
    """Calibrations of all records and of all sessions, and how many of each block they rest on."""

    records: Calibration
    sessions: Calibration
    counts: tuple[tuple[int, int], ...]


def is_worthwhile(sessions: int, rate: float, share: float) -> bool:
    """Whether a plain split, which holds back that share of the sessions, has too few for a promise of this rate.

    >>> is_worthwhile(5_000, 0.001, 0.2), is_worthwhile(5_000, 0.01, 0.2), is_worthwhile(50_000, 1e-6, 0.2)
    (True, False, False)
    """
    return sessions <= MOST_SESSIONS and sessions * share * rate < _ENOUGH_ALARMS


def folds_by_time(first_ms: NDArray[np.int64], folds: int = FOLDS) -> NDArray[np.int8]:
    """(n,) fold of each session from 0: blocks of time of as many sessions each, by their first events.

    Sessions of one hour are alike; dealt out one by one, each would be scored by a model that knows its neighbours,
    and would look less strange than those of tomorrow will.
    """
    fold = np.empty(len(first_ms), np.int8)
    fold[np.argsort(first_ms, kind="stable")] = np.arange(len(first_ms)) * folds // max(1, len(first_ms))
    return fold


def cross_fit(
    fold: NDArray[np.int8], learn_and_score: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Scores]
) -> CrossFitted:
    """Calibrate on the scores of every fold by a model of the others.

    A model of fewer sessions is a little more surprised than the one it stands for, so p-values err to the large side.

    Parameters
    ----------
    fold
        (n,) as `folds_by_time` gives it.
    learn_and_score
        Given (n,) which sessions to learn from and which to score: the scores of the latter, in the order they
        happened. It is called fold by fold.

    References
    ----------
    Vovk 2015, doi:10.1007/s10472-013-9368-4 (cross-conformal predictors), with the scores of all folds pooled.
    """
    assert len(fold), "a history without sessions is refused before"
    held = [learn_and_score(fold != which, fold == which) for which in range(int(fold.max()) + 1)]
    counts = tuple((len(part.records), len(part.sessions)) for part in held)
    records, sessions = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return CrossFitted(Calibration.learn(records), Calibration.learn(sessions), counts)
