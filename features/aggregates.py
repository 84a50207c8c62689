"""Aggregates: the numbers of many samples as a few, group by group. Sums go from first to last, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LARGEST = 1e300  # so that differences and sums stay finite


@dataclass(frozen=True)
class Groups:
    """The values of one number that are there, in G groups.

    Attributes
    ----------
    values, time_ms
        (m,) float64 and int64: each group's in the order of their times.
    group
        (m,) int: never falls.
    how_many
        (G,) int: values in each group, 0 where it has none.
    """

    values: Floats
    time_ms: NDArray[np.int64]
    group: NDArray[np.intp]
    how_many: NDArray[np.intp]

    @classmethod
    def of(cls, values: Floats, time_ms: NDArray[np.int64], group: NDArray[np.intp], groups: int) -> Groups:
        """Leave out the values that are NaN."""
        there = ~np.isnan(values)
        group = group[there]
        return cls(values[there], time_ms[there], group, np.bincount(group, minlength=groups))

    @cached_property
    def filled(self) -> NDArray[np.intp]:
        """Groups with any value."""
        return np.flatnonzero(self.how_many)

    @cached_property
    def first(self) -> NDArray[np.intp]:
        """Position of the first value of each filled group."""
        return (np.cumsum(self.how_many) - self.how_many)[self.filled]

    @cached_property
    def last(self) -> NDArray[np.intp]:
        """Position of the last value of each filled group."""
        return self.first + self.how_many[self.filled] - 1

    @cached_property
    def ascending(self) -> Floats:
        """The values, each group's by size."""
        return self.values[np.lexsort((self.values, self.group))]

    def total(self, values: Floats) -> Floats:
        """Sums of values that stand beside these, one for each filled group; `bincount` adds them in their order."""
        totals: Floats = np.bincount(self.group, weights=values, minlength=len(self.how_many)).astype(np.float64)
        return totals[self.filled]

    @cached_property
    def sums(self) -> Floats:
        """Of each filled group."""
        return self.total(self.values)

    @cached_property
    def means(self) -> Floats:
        """Of each filled group."""
        return self.sums / self.how_many[self.filled]


def _std(groups: Groups) -> Floats:
    """Of the values themselves, not an estimate for more: the divisor is their number."""
    means = np.repeat(groups.means, groups.how_many[groups.filled])
    off = groups.values - means
    return np.sqrt(groups.total(off * off) / groups.how_many[groups.filled])


def _slope(groups: Groups) -> Floats:
    """Change per second from the first value to the last; NaN where both are of one moment."""
    seconds = (groups.time_ms[groups.last] - groups.time_ms[groups.first]) / 1000.0
    return np.where(seconds > 0, (groups.values[groups.last] - groups.values[groups.first]) / seconds, np.nan)


def _quantile(share: float) -> Callable[[Groups], Floats]:
    """Linear between the two nearest of the sorted values (Hyndman and Fan 1996, definition 7; numpy's default)."""

    def quantile(groups: Groups) -> Floats:
        at = (groups.how_many[groups.filled] - 1) * share
        below = np.floor(at)
        low = groups.ascending[groups.first + below.astype(np.intp)]
        high = groups.ascending[groups.first + np.ceil(at).astype(np.intp)]
        between: Floats = low + (high - low) * (at - below)
        return between

    return quantile


# Each gives one number for each filled group.
_AGGREGATES: dict[str, Callable[[Groups], Floats]] = {
    "mean": lambda groups: groups.means,
    "min": lambda groups: np.minimum.reduceat(groups.values, groups.first),
    "max": lambda groups: np.maximum.reduceat(groups.values, groups.first),
    "std": _std,
    "last": lambda groups: groups.values[groups.last],
    "rate": _slope,
    "sum": lambda groups: groups.sums,
    "p50": _quantile(0.5), "p90": _quantile(0.9), "p95": _quantile(0.95), "p99": _quantile(0.99),
}  # fmt: skip
COUNT = "count"
AGGREGATES = (*_AGGREGATES, COUNT)


def aggregate(groups: Groups, names: tuple[str, ...], growth_ms: int | None) -> Floats:
    """Aggregates of one number.

    Parameters
    ----------
    groups
        Its values, none beyond `LARGEST`.
    names
        Some of `AGGREGATES`, A of them.
    growth_ms
        How long a group lasts, where the values are a counter's growth; `rate` is their sum by that then.

    Returns
    -------
    aggregates
        (G, A); NaN where a group has no value, but 0 for `count`. Never infinite.
    """
    out = np.full((len(groups.how_many), len(names)), np.nan)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for column, name in enumerate(names):
            if name == COUNT:
                out[:, column] = groups.how_many
            elif len(groups.filled) == 0:
                continue
            elif name == "rate" and growth_ms is not None:
                out[groups.filled, column] = groups.sums / (growth_ms / 1000.0)
            else:
                out[groups.filled, column] = _AGGREGATES[name](groups)
    finite: Floats = np.clip(out, -LARGEST, LARGEST) + 0.0  # no -0.0
    return finite
