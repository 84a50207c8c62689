"""The tail of a calibration: how often scores are beyond those of which there are enough to count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JOIN = 15  # scores above which counting suffices: its error is about a quarter (one over the root of 15)
LEAST = 1e-12  # p-values below say nothing any more

# A tail is fitted on the scores below the largest JOIN: on a tenth of all, but neither few nor far from the top.
_SHARE, _FEWEST, _MOST = 0.1, 8 * JOIN, 50 * JOIN
_LARGEST_TIE = 1 / 8  # of the scores fitted on: where one value has more of them, they are no continuum
_CLOSE = 10  # large scores that come within so many others are one burst
_DOUBT = 0.05  # chance to see largest scores as large as these, below which the tail is refuted


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto tail above a score.

    It works where scores are many and continuous, with light and heavy tails alike, and errs to the side of heavy ones.
    It fails where something of another kind lies beyond the bulk, such as rare sessions that are normal: `fit` gives
    none where the largest scores show that.

    Attributes
    ----------
    join
        The score it goes on from.
    mass
        The p-value there, by counting.
    scale, shape
        Of the distribution of what is beyond: scale in the scores' unit, shape above 0 (near 0: exponential).
    """

    join: float
    mass: float
    scale: float
    shape: float

    def p_value(self, score: float) -> float:
        """In (0, mass], for a score of at least `join`; a float of the same bits wherever it is asked for."""
        return max(LEAST, self.mass * math.exp(-self._nats(score)))

    def _nats(self, score: float) -> float:
        return math.log1p(self.shape * (score - self.join) / self.scale) / self.shape

    @classmethod
    def fit(cls, scores: NDArray[np.float32]) -> Tail | None:
        """Fit a tail to scores in the order they happened, or give None where it cannot be trusted.

        Of the `JOIN` largest scores it is only used that they are large, not how large, so that a burst does not bend
        it. They are what it is held against: it is refuted if they lie further out than its like would come to lie one
        time of twenty. A single burst of them refutes nothing, for it happened once.
        """
        n = len(scores)
        if n < _FEWEST:
            return None
        ordered = np.sort(scores)[::-1].astype(np.float64)
        near = ordered[: min(n, max(_FEWEST, min(int(_SHARE * n), _MOST)))]
        join, start = float(ordered[JOIN - 1]), float(near[-1])
        if not (math.isfinite(start) and math.isfinite(join) and start < join) or _is_discrete(near):
            return None
        shape, scale = _generalised_pareto(near[JOIN:-1] - start, join - start)
        tail = cls(join, (1.0 + int((ordered >= join).sum())) / (1.0 + n), scale, shape)
        return None if tail._is_refuted(scores) else tail

    def _is_refuted(self, scores: NDArray[np.float32]) -> bool:
        """Whether the largest scores, but for those of one burst, are too large for the tail."""
        at = np.flatnonzero(scores > self.join)
        bursts = np.split(at, np.flatnonzero(np.diff(at) > _CLOSE) + 1)
        nats = [sum(self._nats(float(scores[i])) for i in burst.tolist()) for burst in bursts]
        worst = int(np.argmax(nats))
        rest = math.fsum(nats[:worst] + nats[worst + 1 :])
        # Under the tail each score's nats are exponential, and their sum is Erlang.
        return not _erlang_beyond(rest, len(at) - len(bursts[worst])) >= _DOUBT


def _is_discrete(near: NDArray[np.float64]) -> bool:
    _, ties = np.unique(near, return_counts=True)
    return int(ties.max()) > _LARGEST_TIE * len(near)


def _generalised_pareto(excess: NDArray[np.float64], censored_at: float) -> tuple[float, float]:
    """Shape and scale beyond `censored_at`, of (k,) excesses below it and `JOIN` of which only that is known.

    For a given ratio of shape to scale the likeliest shape is a mean; the ratio is its posterior mean over a grid that
    spans exponential to very heavy tails. The mean errs to heavy tails where data is short, a maximum would not.

    References
    ----------
    Zhang and Stephens 2009, doi:10.1198/tech.2009.08017, with the likelihood of scores censored above and a grid that
    is even in the logarithm.
    """
    k = len(excess)

    def shape_of(ratio: float) -> float:
        return (float(np.log1p(ratio * excess).sum()) + JOIN * math.log1p(ratio * censored_at)) / k

    mean = (float(excess.sum()) + JOIN * censored_at) / k
    ratios = np.geomspace(0.01, 100.0, 64) / mean
    shapes = np.array([shape_of(ratio) for ratio in ratios])
    likelihood = k * np.log(ratios / shapes) - np.array([np.log1p(ratio * excess).sum() for ratio in ratios])
    weight = np.exp(likelihood - likelihood.max())
    ratio = float((weight * ratios).sum() / weight.sum())
    shape = shape_of(ratio)
    return shape, shape / ratio + shape * censored_at


def _erlang_beyond(total: float, count: int) -> float:
    """Chance that a sum of so many standard exponentials is at least `total`; 1 for none."""
    term, tail = 1.0, 0.0
    for i in range(count):
        tail += term
        term *= total / (i + 1)
    return math.exp(-total) * tail if count else 1.0
