"""Cross-fitting: every session is scored by a model that never saw it, so that all of them calibrate.

A fifth held back wastes four fifths of the sessions. Instead they are cut into blocks of time; for each a model learns
from the others and scores it, and the scores of all blocks together calibrate the model that serves. That takes as many
trainings more as there are blocks, so it is for histories of few sessions.

The model that serves is another than those, so what it says of the history counts too. Where many scores are the same,
as of sessions' first lines, each model gives all of these a score of its own: that of the one that serves may lie just
above those of the others, and every twentieth record be an anomaly. No score is rarer than it finds it in the history,
as far as counting tells: its own largest scores are a few draws, and the larger of two such draws would be too high.

References
----------
Vovk 2015, doi:10.1007/s10472-013-9368-4 (cross-conformal predictors), with the scores of all folds pooled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detectors.splits import Split
from detectors.tail import JOIN

FOLDS = 3  # so that each model learns from about as many sessions as the one that serves
# With more sessions the trainings cost more than they give: a fifth of these is enough for one in 1,300.
MOST_SESSIONS = 20_000
_VALIDATE = 8  # of the sessions a fold's model may see, every eighth tells when to stop
_ENOUGH_ALARMS = 3  # expected among the held-back sessions, for their quantile to be more than a lottery


def is_worthwhile(sessions: int, rate: float, share: float) -> bool:
    """Whether a plain split, which holds back that share of the sessions, has too few for a promise of this rate.

    >>> is_worthwhile(5_000, 0.001, 0.2), is_worthwhile(5_000, 0.01, 0.2), is_worthwhile(50_000, 1e-6, 0.2)
    (True, False, False)
    """
    return sessions <= MOST_SESSIONS and sessions * share * rate < _ENOUGH_ALARMS


def raised_to(scores: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) scores by other models, in their order, each at least what the one that serves gives at the same rank.

    Of the largest, where counting tells little, only as much as keeps them the largest.

    `own` (m,) are its scores of the same; those that it learned from are too low, which changes nothing.

    >>> alike, own = np.full(100, 2, np.float32), np.full(100, 3, np.float32)
    >>> set(raised_to(alike, own).tolist()), set(raised_to(alike, np.append(alike[1:], np.float32(9))).tolist())
    ({3.0}, {2.0})
    """
    counted = max(0, len(scores) - JOIN)
    if not counted or not len(own):
        return scores
    raised = np.empty_like(scores)
    ranks = ((np.arange(len(scores)) + 1) * len(own) - 1) // len(scores)
    order = np.argsort(scores, kind="stable")
    floor = np.sort(own)[ranks]
    floor[counted:] = floor[counted - 1]
    raised[order] = np.maximum(scores[order], floor)
    return raised


def splits_by_time(first_ms: NDArray[np.int64], folds: int = FOLDS) -> Iterator[Split]:
    """Splits that hold each of (S,) sessions back once, by blocks of time of as many sessions each.

    Sessions of one hour are alike; dealt out one by one, each would be scored by a model that knows its neighbours,
    and would look less strange than those of tomorrow will.
    """
    fold = np.empty(len(first_ms), np.int8)
    order = np.argsort(first_ms, kind="stable")
    fold[order] = np.arange(len(first_ms)) * folds // max(1, len(first_ms))
    for which in range(folds):
        yield _without(fold == which, order)


def of_everything(first_ms: NDArray[np.int64]) -> Split:
    """The split of a model that serves where folds calibrate it: nothing is held back but to tell when to stop.

    It knows the latest of (S,) sessions too; what is usual of a number, its level and spread, moves as time goes on.
    """
    return _without(np.zeros(len(first_ms), np.bool_), np.argsort(first_ms, kind="stable"))


def _without(held_back: NDArray[np.bool_], order: NDArray[np.intp]) -> Split:
    seen, validate = order[~held_back[order]], np.zeros_like(held_back)
    validate[seen[_VALIDATE - 1 :: _VALIDATE]] = True
    return Split(~held_back & ~validate, validate, held_back)
