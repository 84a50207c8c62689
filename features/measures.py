"""Measures: what the model sees of numbers and of time, the same in training and in serving.

A counter becomes its rate per second, any other number stays. Both are float32, as rows keep them, so that a bundle
that replays a row sees what was seen live.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.events import Events
from features.numbers import Names
from features.rates import named_rates, rates
from features.sessions import Walk
from features.time_gaps import time_gaps

_LARGEST = float(np.finfo(np.float32).max)
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
# Names of positions in time, with how many there are; id 0 stands for none.
SEASONS = {"hour": 24, "weekday": 7}
# A position is learned where the history holds each at least twice.
LEAST_SPAN_MS = {"hour": 2 * _DAY_MS, "weekday": 14 * _DAY_MS}


@dataclass(frozen=True)
class NumberRules:
    """What the number columns of a stream are.

    Attributes
    ----------
    counters
        Columns that only grow.
    named_by
        For each number column the token column with the names of its numbers, None for one that stands for itself;
        empty where all do.
    counter_names
        Names of numbers that only grow, where the first column is named.
    seasonal
        Which positions in time a model may be given.
    parameters
        How many columns, the last ones of records, are numbers in the lines of messages. Templates name them.
    gaps
        After the columns of records there is one more: the time gap (features/time_gaps.py). `named_by` covers it too.
    """

    counters: tuple[int, ...] = ()
    named_by: tuple[int | None, ...] = ()
    counter_names: tuple[str, ...] = ()
    seasonal: tuple[str, ...] = ()
    parameters: int = 0
    gaps: bool = False

    @property
    def gaps_named_by(self) -> int | None:
        """The token column whose values have usual time gaps of their own; None where all events share them."""
        return self.named_by[-1] if self.gaps and self.named_by else None

    def names(self, events: Events) -> Names | None:
        """For each number column the names of the events' numbers, None for one that stands for itself; or None."""
        return [None if by is None else events.tokens[by] for by in self.named_by] or None


def measure(
    events: Events, walk: Walk, last_value: NDArray[np.float64], last_ms: NDArray[np.int64], rules: NumberRules
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Measures of n events.

    Parameters
    ----------
    walk
        Of the same events; a late one has no rate, and changes none.
    last_value, last_ms
        (S, C): state of the counters, as in features/rates.py. Left untouched.

    Returns
    -------
    measures, last_value, last_ms
        (n, N) float32, NaN where missing, the time gap last; the state after.
    """
    measures, last_value, last_ms = _measures_of_records(events, walk, last_value, last_ms, rules)
    if rules.gaps:
        measures = np.column_stack([measures, _kept(time_gaps(walk))])
    return measures, last_value, last_ms


def _measures_of_records(
    events: Events, walk: Walk, last_value: NDArray[np.float64], last_ms: NDArray[np.int64], rules: NumberRules
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    values, last_value, last_ms = events.numbers.copy(), last_value.copy(), last_ms.copy()
    counters = np.array(rules.counters, np.intp)
    if not len(counters) and not rules.counter_names:
        return _kept(values), last_value, last_ms
    taken = np.flatnonzero(~walk.is_late)
    row, first, time_ms = events.session[taken], walk.opens[taken], events.time_ms[taken]
    if not rules.counter_names:
        values[np.ix_(np.flatnonzero(walk.is_late), counters)] = np.nan
        grown = np.empty((len(taken), len(counters)))
        rates(row, first, events.numbers[np.ix_(taken, counters)], time_ms, last_value, last_ms, grown)
        values[np.ix_(taken, counters)] = grown
    else:
        place = {name: c for c, name in enumerate(rules.counter_names)}
        names = events.tokens[rules.named_by[0] or 0]
        which = np.array([place.get(str(name), -1) for name in names], np.int64)
        values[walk.is_late & (which >= 0), 0] = np.nan
        each = np.empty(len(taken))
        named_rates(row, first, which[taken], events.numbers[taken, 0], time_ms, last_value, last_ms, each)
        values[taken, 0] = each
    return _kept(values), last_value, last_ms


def _kept(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """As rows keep them: what is beyond float32 counts as its largest."""
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)


def seasons(time_ms: NDArray[np.int64], wanted: tuple[str, ...]) -> NDArray[np.int32]:
    """(n, K) int32 positions of times in the hours of a day and the days of a week (UTC, from Monday), from 1.

    >>> seasons(np.array([0]), ("hour", "weekday")).tolist()  # 1970 began on a Thursday
    [[1, 4]]
    """
    positions = {"hour": time_ms // _HOUR_MS % 24 + 1, "weekday": (time_ms // _DAY_MS + 3) % 7 + 1}
    out = np.empty((len(time_ms), len(wanted)), np.int32)
    for k, name in enumerate(wanted):
        out[:, k] = positions[name]
    return out
