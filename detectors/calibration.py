"""Calibration: how often normal data looks as strange as this score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXACT, _BULK = 8_192, 2_048  # scores kept one by one at the top, and quantiles kept below them


@dataclass(frozen=True)
class Calibration:
    """Scores of held-back normal data, thinned below the top, and the p-values they give.

    The p-value of a score is (1 + how many held-back scores reach it) / (1 + how many there are): valid whatever the
    scores' distribution while normal data stays as it was, and never 0. It fails to reach below 1 / (1 + n): a promise
    smaller than that raises no alarm, which training says aloud.

    Attributes
    ----------
    levels
        (k,) float32, ascending: the largest scores one by one, below them quantiles.
    reaching, above
        (k,) int64: how many held-back scores are at least, and more than, each level.
    count
        n, how many scores were held back.

    References
    ----------
    Vovk, Gammerman, Shafer 2005, Algorithmic Learning in a Random World; Bates et al. 2023, arXiv:2104.08279.
    """

    levels: NDArray[np.float32]
    reaching: NDArray[np.int64]
    above: NDArray[np.int64]
    count: int

    @classmethod
    def learn(cls, scores: ArrayLike) -> Calibration:
        """Sort and thin the held-back scores; NaN is not allowed among them."""
        ordered = np.sort(np.asarray(scores, np.float32))
        n = len(ordered)
        bulk = np.linspace(0, max(0, n - _EXACT), _BULK, endpoint=False).astype(np.int64)
        levels = np.unique(np.concatenate([ordered[bulk] if n else ordered, ordered[max(0, n - _EXACT) :]]))
        reaching = n - np.searchsorted(ordered, levels, side="left")
        above = n - np.searchsorted(ordered, levels, side="right")
        return cls(levels, reaching.astype(np.int64), above.astype(np.int64), n)

    @property
    def smallest_p_value(self) -> float:
        """The least p-value this much data can give."""
        return 1.0 / (1.0 + self.count)

    def p_values(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) float64 in (0, 1] of (n,) scores; NaN stays NaN.

        Between two levels all scores above the lower one are counted: exact at the top, rounded up in the bulk.

        >>> Calibration.learn([1.0, 2.0, 3.0]).p_values(np.array([0.5, 2.0, 2.5, 9.0], np.float32)).tolist()
        [1.0, 0.75, 0.5, 0.25]
        """
        at = np.searchsorted(self.levels, scores, side="left")
        levels, reaching = np.append(self.levels, np.float32(np.inf)), np.append(self.reaching, 0)
        below = np.concatenate([[self.count], self.above])
        counted = np.where(levels[at] == scores, reaching[at], below[at])
        return np.where(np.isnan(scores), np.nan, (1.0 + counted) / (1.0 + self.count))
