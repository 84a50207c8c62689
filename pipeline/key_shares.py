"""How records fall to keys: how many distinct ones come in a while, and how often one of the most recent comes again.

Arrivals are taken as Poisson, so a key with a share p of the records has come among n of them with the probability
1 - exp(-n p). Of S keys that are alike S (1 - exp(-n / S)) have then come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ZIPF = 1.1  # the exponent of the benchmarks' keys
_EXACT = 4_096  # ranks that are summed one by one
_RATIO = 1.02  # width of a block of the others; a half of it changes no figure by a thousandth
_STEPS = 80  # of a bisection: beyond what a float can tell


@dataclass(frozen=True)
class KeyShares:
    """Shares of S keys: of rank k it is as k ** -exponent; with an exponent of 0 all are alike.

    Attributes
    ----------
    keys
        S, at least 1.
    """

    keys: int
    exponent: float = 0.0

    @property
    def largest(self) -> float:
        """Share of the key that has most."""
        return float(self._shares[0])

    def distinct(self, draws: float) -> float:
        """How many keys have come among so many records, on average.

        >>> round(KeyShares(1_000).distinct(1_000), 1), round(KeyShares(1_000, ZIPF).distinct(1_000), 1)
        (632.1, 279.6)
        """
        return float((self._counts * -np.expm1(-draws * self._shares)).sum())

    def draws_for(self, distinct: float) -> float:
        """Among how many records so many keys have come; infinite where there are no more than these."""
        if distinct >= self.keys:
            return math.inf
        low, high = 0.0, 1.0
        while self.distinct(high) < distinct:
            low, high = high, 2 * high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.distinct(middle) < distinct else (low, middle)
        return high

    def misses(self, kept: float) -> float:
        """Share of records whose key is not among so many that came last.

        Those kept are the ones that came within some time T (Che, Tung and Wang 2002, DOI 10.1109/JSAC.2002.801752,
        equation 3): T is such that as many distinct keys come in it. A store's clock only approximates that order.

        >>> KeyShares(1_000).misses(250), KeyShares(1_000).misses(1_000), round(KeyShares(1_000, ZIPF).misses(250), 3)
        (0.75, 0.0, 0.193)
        """
        if kept >= self.keys:
            return 0.0
        if self.exponent == 0.0:
            return 1.0 - kept / self.keys
        span = self.draws_for(kept)
        return float((self._counts * self._shares * np.exp(-span * self._shares)).sum())

    @property
    def _shares(self) -> NDArray[np.float64]:
        return self._blocks[0]

    @property
    def _counts(self) -> NDArray[np.float64]:
        return self._blocks[1]

    @cached_property
    def _blocks(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of a key, and how many keys have it: ranks one by one, then in blocks that grow.

        A block's weight is the integral over its ranks from half before the first to half after the last, which is
        their sum to within its curvature.
        """
        if self.exponent == 0.0:
            return np.array([1 / self.keys]), np.array([self.keys])
        ranks = np.arange(1, min(self.keys, _EXACT) + 1)
        weights, counts = ranks**-self.exponent, np.ones(len(ranks))
        if self.keys > _EXACT:
            blocks = max(1, math.ceil(math.log(self.keys / _EXACT) / math.log(_RATIO)))
            edges = np.geomspace(_EXACT, self.keys, blocks + 1) + 0.5
            power = 1.0 - self.exponent
            counts = np.append(counts, widths := np.diff(edges))
            weights = np.append(weights, np.diff(edges**power) / power / widths)
        return weights / (weights * counts).sum(), counts
