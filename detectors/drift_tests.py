"""Tests that tell whether a series, or a histogram, is still what it was. Plain numbers in and out, all bounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb, exp, inf, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PageHinkley:
    """Whether a mean has moved, by the summed distances from the mean so far.

    Attributes
    ----------
    slack
        What a value may be off without counting, in the values' unit.
    threshold
        From which sum on it has changed, in the same unit.
    forgets
        What a sum keeps from one value to the next.

    References
    ----------
    Page 1954, doi:10.1093/biomet/41.1-2.100; Hinkley 1971, doi:10.1093/biomet/58.3.509. Two-sided and forgetting, as
    river's `drift.PageHinkley` is, to which a test holds it.
    """

    slack: float = 0.005
    threshold: float = 50.0
    forgets: float = 1 - 0.0001
    least: int = 30
    seen: int = 0
    mean: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    lowest: float = inf
    highest: float = -1.0
    has_changed: bool = False

    def update_one(self, value: float) -> PageHinkley:
        """Take in a value; after a change all begins anew."""
        if self.has_changed:
            return self._anew().update_one(value)
        seen = self.seen + 1
        mean = self.mean + (value - self.mean) / seen
        rise = self.forgets * self.rise + value - mean - self.slack
        fall = self.forgets * self.fall + value - mean + self.slack
        lowest, highest = min(self.lowest, rise), max(self.highest, fall)
        changed = seen >= self.least and max(rise - lowest, highest - fall) > self.threshold
        return replace(
            self, seen=seen, mean=mean, rise=rise, fall=fall, lowest=lowest, highest=highest, has_changed=changed
        )

    def _anew(self) -> PageHinkley:
        return PageHinkley(self.slack, self.threshold, self.forgets, self.least)

    def to_array(self) -> Floats:
        """(7,) float64: all there is to save."""
        saved = (self.seen, self.mean, self.rise, self.fall, self.lowest, self.highest, self.has_changed)
        return np.array(saved, np.float64)

    def restored(self, saved: Floats) -> PageHinkley:
        """The same with what `to_array` gave."""
        seen, mean, rise, fall, lowest, highest, changed = saved.tolist()
        return replace(
            self, seen=int(seen), mean=mean, rise=rise, fall=fall, lowest=lowest, highest=highest,
            has_changed=bool(changed),
        )  # fmt: skip


@dataclass(frozen=True)
class Kswin:
    """Whether the newest values of a window have another distribution than those before them.

    Attributes
    ----------
    alpha
        From which p-value down they have.
    size, newest
        Values in the window, and how many of these are the newest.

    References
    ----------
    Raab, Heusinger, Schleif 2020, doi:10.1016/j.neucom.2019.11.111. They draw as many of the older values as there are
    newest ones; we take all of them, so nothing is left to chance.
    """

    alpha: float = 0.005
    size: int = 100
    newest: int = 30
    values: tuple[float, ...] = ()
    has_changed: bool = False

    def update_one(self, value: float) -> Kswin:
        """Take in a value; after a change only the newest are kept."""
        values = (*self.values, value)[-self.size :]
        if len(values) < self.size:
            return replace(self, values=values, has_changed=False)
        older, newer = np.array(values[: -self.newest]), np.array(values[-self.newest :])
        distance = ks_distance(older, newer)
        changed = distance > 0.1 and ks_p_value(distance, len(older), len(newer)) <= self.alpha
        return replace(self, values=values[-self.newest :] if changed else values, has_changed=changed)

    def to_array(self) -> Floats:
        """(1 + n,) float64: all there is to save."""
        return np.array([self.has_changed, *self.values], np.float64)

    def restored(self, saved: Floats) -> Kswin:
        """The same with what `to_array` gave."""
        changed, *values = saved.tolist()
        return replace(self, values=tuple(values), has_changed=bool(changed))


@dataclass(frozen=True)
class Ddm:
    """Whether errors have become more frequent than they were at best.

    References
    ----------
    Gama, Medas, Castillo, Rodrigues 2004, doi:10.1007/978-3-540-28645-5_29: from three standard deviations above the
    best on. A test holds it to river's `drift.binary.DDM`.
    """

    least: int = 30
    deviations: float = 3.0
    seen: int = 0
    errors: int = 0
    best: float = inf
    best_deviation: float = 0.0
    has_changed: bool = False

    def update_one(self, is_error: bool) -> Ddm:
        """Take in whether a prediction was wrong; after a change all begins anew."""
        if self.has_changed:
            return Ddm(self.least, self.deviations).update_one(is_error)
        seen, errors = self.seen + 1, self.errors + is_error
        rate = errors / seen
        deviation = sqrt(rate * (1 - rate) / seen)
        best, best_deviation = self.best, self.best_deviation
        if seen <= self.least:
            return replace(self, seen=seen, errors=errors)
        if rate + deviation <= best + best_deviation:
            best, best_deviation = rate, deviation
        changed = rate + deviation > best + self.deviations * best_deviation
        return replace(
            self, seen=seen, errors=errors, best=best, best_deviation=best_deviation, has_changed=changed
        )  # fmt: skip

    def to_array(self) -> Floats:
        """(5,) float64: all there is to save."""
        return np.array([self.seen, self.errors, self.best, self.best_deviation, self.has_changed], np.float64)

    def restored(self, saved: Floats) -> Ddm:
        """The same with what `to_array` gave."""
        seen, errors, best, best_deviation, changed = saved.tolist()
        return replace(
            self, seen=int(seen), errors=int(errors), best=best, best_deviation=best_deviation,
            has_changed=bool(changed),
        )  # fmt: skip


def ks_distance(one: Floats, other: Floats) -> float:
    """Largest distance between two samples' distribution functions, in [0, 1]."""
    one, other = np.sort(one), np.sort(other)
    at = np.concatenate([one, other])
    shares = [np.searchsorted(sample, at, side="right") / len(sample) for sample in (one, other)]
    return float(np.max(np.abs(shares[0] - shares[1])))


def ks_p_value(distance: float, n: int, m: int) -> float:
    """How often two samples of n and m values of one continuous distribution are at least so far apart, at most.

    References
    ----------
    Kolmogorov's limit with the correction of Stephens 1970, doi:10.1111/j.2517-6161.1970.tb00821.x.
    """
    root = sqrt(n * m / (n + m))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series does not end there, and is 1 to nine digits
        return 1.0
    total: float = sum(2 * (-1) ** (k - 1) * exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return min(1.0, max(0.0, total))


def psi(counts: NDArray[np.int64], expected: Floats) -> Floats:
    """Population stability index of histograms, less what sampling alone adds to it.

    The index is the sum of (p - q) ln(p / q) over bins: both Kullback-Leibler divergences of the observed shares p and
    the expected ones q. Counts are shrunk a little towards what is expected, so an empty bin is not infinitely far.

    Parameters
    ----------
    counts
        (..., K).
    expected
        (..., K) shares, each above 0.

    Returns
    -------
    (...)
        At least 0, in nats; 0 where fewer than 32 were counted. 0.1 is commonly taken for moderate, 0.25 for large.

    References
    ----------
    Siddiqi 2006, Credit Risk Scorecards. Its mean for n records is about (K - 1) / n: Yurdakul and Naranjo 2020,
    doi:10.21314/JRMV.2020.227.
    """
    n = counts.sum(axis=-1, keepdims=True)
    p = (counts + _SHRINK * expected) / (n + _SHRINK)
    index = ((p - expected) * np.log(np.where(p > 0, p, 1.0) / expected)).sum(axis=-1)
    filled = np.minimum(1.0, n * expected).sum(axis=-1)
    n = n[..., 0]
    return np.where(n < _LEAST, 0.0, np.maximum(0.0, index - (filled - 1) / np.maximum(1, n)))


def binned_ks(counts: NDArray[np.int64], expected: Floats) -> Floats:
    """(...) largest distance between the distribution functions of (..., K) counts and shares, less sampling's mean.

    Of bins without an order it is still a distance, between 0 and 1; 0 where fewer than 32 were counted.
    """
    n = counts.sum(axis=-1)
    share = np.cumsum(counts, axis=-1) / np.maximum(1, n)[..., None]
    distance = np.abs(share - np.cumsum(expected, axis=-1)).max(axis=-1)
    # 0.87 / sqrt(n) is Kolmogorov's mean.
    return np.where(n < _LEAST, 0.0, np.maximum(0.0, distance - 0.87 / np.sqrt(np.maximum(1, n))))


_SHRINK, _LEAST = 8.0, 32


def at_least(k: int, n: int, chance: float) -> float:
    """How often k or more of n independent things of that chance happen.

    >>> round(at_least(2, 2, 0.5), 3), at_least(0, 5, 0.1)
    (0.25, 1.0)
    """
    total: float = sum(comb(n, j) * chance**j * (1 - chance) ** (n - j) for j in range(k, n + 1))
    return min(1.0, total)
