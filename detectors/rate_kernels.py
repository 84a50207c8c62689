"""Tails of counts that vary more than chance alone makes them: the negative binomial, by sums along one fixed path.

A count of mean m has the variance m + a m². a is the dispersion; towards 0 the counts are Poisson's.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

_SMALLEST = 1e-9  # dispersion below which counts are taken for Poisson's
_ENOUGH = 1e-15  # of a sum: smaller terms are left out
TOO_MANY, TOO_FEW = 1, -1
Floats = NDArray[np.float64]


@njit(cache=True)
def _log_probability(count, mean, dispersion):
    if dispersion < _SMALLEST:
        return count * math.log(mean) - mean - math.lgamma(count + 1.0)
    size = 1.0 / dispersion
    ways = math.lgamma(count + size) - math.lgamma(size) - math.lgamma(count + 1.0)
    return ways - size * math.log1p(dispersion * mean) + count * (math.log(mean) - math.log(size + mean))


@njit(cache=True)
def _grows(count, mean, dispersion):
    """The probability of one more, by that of `count`."""
    if dispersion < _SMALLEST:
        return mean / (count + 1.0)
    size = 1.0 / dispersion
    return (count + size) / (count + 1.0) * mean / (size + mean)


@njit(cache=True)
def at_most(count, mean, dispersion):
    """P(X <= count); summed from the count down, or where that is the longer part, from the next up."""
    if count < 0:
        return 0.0
    if mean <= 0.0:
        return 1.0
    if count > mean:
        return 1.0 - _upwards(count + 1, mean, dispersion)
    term = math.exp(_log_probability(count, mean, dispersion))
    total, k = term, count
    while k > 0 and term > _ENOUGH * total:
        term /= _grows(k - 1.0, mean, dispersion)
        total += term
        k -= 1
    return min(total, 1.0)


@njit(cache=True)
def at_least(count, mean, dispersion):
    """P(X >= count)."""
    if count <= 0:
        return 1.0
    if mean <= 0.0:
        return 0.0
    return _upwards(count, mean, dispersion) if count > mean else 1.0 - at_most(count - 1, mean, dispersion)


@njit(cache=True)
def _upwards(count, mean, dispersion):
    term = math.exp(_log_probability(count, mean, dispersion))
    total, k = term, float(count)
    while term > _ENOUGH * total:
        term *= _grows(k, mean, dispersion)
        total += term
        k += 1.0
    return min(total, 1.0)


@njit(cache=True)
def judge(counts, low, high, dispersion, p_values, directions):
    """Write of (S,) counts p-values and directions: against the lower mean for too few, the higher for too many."""
    for s in range(len(counts)):
        few, many = at_most(counts[s], low[s], dispersion[s]), at_least(counts[s], high[s], dispersion[s])
        p_values[s] = min(1.0, max(2.0 * min(few, many), 1e-300))
        directions[s] = TOO_FEW if few < many else TOO_MANY


@njit(cache=True)
def smallest(share, mean, dispersion):
    """The smallest count that P(X <= count) > share."""
    low, high = -1, 1
    while at_most(high, mean, dispersion) <= share:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(middle, mean, dispersion) <= share:
            low = middle
        else:
            high = middle
    return high


@njit(cache=True)
def largest(share, mean, dispersion):
    """The largest count that P(X >= count) > share."""
    low, high = 0, 1
    while at_least(high, mean, dispersion) > share:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if at_least(middle, mean, dispersion) > share:
            low = middle
        else:
            high = middle
    return low
