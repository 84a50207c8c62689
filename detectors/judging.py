"""Measures of verdicts against labels. The threshold is the calibration's own; none is ever chosen by the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE_95 = 1.959963984540054  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Counts:
    """What was alarmed and what should have been; floats, for a sample may carry weights.

    A measure is None where it has nothing to measure: precision without an alarm, recall without an anomaly.
    """

    hits: float
    false_alarms: float
    missed: float
    passed: float

    @property
    def precision(self) -> float | None:
        """Share of alarms that are right."""
        return _share(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float | None:
        """Share of anomalies that are alarmed."""
        return _share(self.hits, self.hits + self.missed)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 where anomalies are and none is alarmed."""
        return _share(2 * self.hits, 2 * self.hits + self.false_alarms + self.missed) if self._anomalies else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of what is normal that is alarmed: the rate that a promise is about."""
        return _share(self.false_alarms, self.false_alarms + self.passed)

    @property
    def _anomalies(self) -> float:
        return self.hits + self.missed


def count(alarmed: ArrayLike, anomalous: ArrayLike, weights: ArrayLike | None = None) -> Counts:
    """Counts of (n,) alarms against (n,) labels, both bool.

    Parameters
    ----------
    weights
        (n,) how many each stands for; absent: 1.

    Examples
    --------
    >>> count([True, True, False], [True, False, False])
    Counts(hits=1.0, false_alarms=1.0, missed=0.0, passed=1.0)
    """
    a, y = np.asarray(alarmed, bool), np.asarray(anomalous, bool)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    return Counts(*(float(w[of].sum()) for of in (a & y, a & ~y, ~a & y, ~a & ~y)))


def interval(hits: int, tries: int, z: float = CONFIDENCE_95) -> tuple[float, float]:
    """Where a rate lies by 95 %, of which `hits` of `tries` were seen; without tries anywhere.

    The score interval: for rates near 0 and few hits it holds its level far better than a normal approximation, which
    would be empty for no hit.

    Examples
    --------
    >>> [round(bound, 4) for bound in interval(1, 1000)], interval(0, 0)
    ([0.0002, 0.0056], (0.0, 1.0))

    References
    ----------
    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; Brown, Cai and
    DasGupta 2001, "Interval estimation for a binomial proportion", Statistical Science 16.
    """
    if tries == 0:
        return 0.0, 1.0
    rate, spread = hits / tries, z * z / tries
    middle = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / tries + spread / (4 * tries)) / (1 + spread)
    # The bounds are exact where nothing, or everything, was seen.
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == tries else middle + half


@dataclass(frozen=True)
class Curve:
    """Precision at each recall, as a threshold falls through the scores.

    Attributes
    ----------
    threshold
        (k,) float64, descending: each distinct score, for equal ones cannot be told apart.
    precision, recall
        (k,) float64 of what reaches it.
    """

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the curve as steps (average precision): chance gives the share of anomalies, perfection 1."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))


def precision_recall(scores: ArrayLike, anomalous: ArrayLike, weights: ArrayLike | None = None) -> Curve | None:
    """The curve of (n,) scores against (n,) labels; None where nothing is anomalous. NaN, no score, is below all.

    Examples
    --------
    >>> curve = precision_recall([0.9, 0.8, 0.7], [True, False, True])
    >>> curve.recall.tolist(), [round(p, 2) for p in curve.precision.tolist()], round(curve.area, 3)
    ([0.5, 0.5, 1.0], [1.0, 0.5, 0.67], 0.833)

    References
    ----------
    Davis and Goadrich 2006, "The relationship between precision-recall and ROC curves", ICML, on why the points are not
    joined by lines.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    if not (w * y).sum() > 0:
        return None
    order = np.argsort(-np.where(np.isnan(s), -np.inf, s), kind="stable")
    s, hits, all_ = np.where(np.isnan(s), -np.inf, s)[order], np.cumsum((w * y)[order]), np.cumsum(w[order])
    last = np.append(s[1:] != s[:-1], True) & (all_ > 0)  # a cut lies between different scores only
    return Curve(s[last], hits[last] / all_[last], hits[last] / hits[-1])


def overlapping(first: ArrayLike, last: ArrayLike, begin: ArrayLike, end: ArrayLike) -> NDArray[np.bool_]:
    """Whether each of (n,) spans, `first` to `last`, shares a moment with any of (r,) ranges, `begin` to `end`.

    All four are whole numbers of one unit, and ends belong to what they end.

    Examples
    --------
    >>> overlapping([0, 5, 9], [4, 5, 9], [4, 6], [5, 8]).tolist()
    [True, True, False]
    """
    f, t, b, e = (np.asarray(values, np.int64) for values in (first, last, begin, end))
    if not len(b):
        return np.zeros(len(f), np.bool_)
    order = np.argsort(b, kind="stable")
    furthest = np.maximum.accumulate(e[order])  # the latest end of the ranges that have begun
    begun = np.searchsorted(b[order], t, side="right")
    found: NDArray[np.bool_] = (begun > 0) & (furthest[np.maximum(begun, 1) - 1] >= f)
    return found


def delays(begin: ArrayLike, end: ArrayLike, first: ArrayLike, last: ArrayLike) -> NDArray[np.float64]:
    """How long after the begin of each of (r,) ranges it was found; NaN where it was not.

    A range is found at the earliest end of the (a,) alarmed spans, `first` to `last`, that share a moment with it. A
    record is a span of one moment; a session is known to be strange at its last event.

    Examples
    --------
    >>> delays([10, 50], [20, 60], [5, 12, 70], [5, 15, 80]).tolist()
    [5.0, nan]
    """
    f, t = np.asarray(first, np.int64), np.asarray(last, np.int64)
    found = []
    for b, e in zip(np.asarray(begin, np.int64).tolist(), np.asarray(end, np.int64).tolist(), strict=True):
        ends = t[(f <= e) & (t >= b)]
        found.append(float(ends.min() - b) if len(ends) else np.nan)
    return np.array(found, np.float64)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
