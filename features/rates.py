"""Counters: numbers that only grow, such as bytes sent since a process began, to rates per second.

What a model can learn of a counter is how quickly it grows. A counter that is smaller than before began anew at 0, as
it does when its process restarts; what it shows then is what it has grown since.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LARGEST_RATE = 1e300


@njit(cache=True)
def rates(row, first, values, time_ms, last_value, last_ms, out):
    """Rates of m samples with C counters each, in order; state is kept for each of S sessions.

    The state is a counter's last value, and when it was. A sample gives NaN and leaves the state where its value is
    missing, and where its time is not after the state's: of two samples at one moment the first counts. A session's
    first sample of a counter gives NaN and sets the state. Any other gives its growth by the seconds since the state's
    time, or its value by them where it is smaller than the state's, and sets the state.

    Parameters
    ----------
    row
        (m,) int: the session of each sample.
    first
        (m,) bool: the sample opens a session, which forgets the state.
    values
        (m, C) float64; NaN where one is missing, never infinite.
    time_ms
        (m,) int64.
    last_value, last_ms
        (S, C) float64 and int64: the state, changed in place; a value of NaN is none.
    out
        (m, C) float64: per second, written.

    References
    ----------
    Prometheus' `rate` takes a decrease for a reset to 0 in the same way; it spans a window, this one sample.
    """
    m, counters = values.shape
    for i in range(m):
        if first[i]:
            last_value[row[i], :] = np.nan
        for c in range(counters):
            out[i, c] = _rate(values[i, c], time_ms[i], row[i], c, last_value, last_ms)


@njit(cache=True)
def named_rates(row, first, counter, values, time_ms, last_value, last_ms, out):
    """`rates` of m samples of one number each, which says by name what it is.

    Parameters
    ----------
    counter
        (m,) int: which of the C counters a sample is of; -1 for none, whose value stays as it is.
    values, out
        (m,) float64.
    """
    for i in range(len(values)):
        if first[i]:
            last_value[row[i], :] = np.nan
        if counter[i] < 0:
            out[i] = values[i]
        else:
            out[i] = _rate(values[i], time_ms[i], row[i], counter[i], last_value, last_ms)


@njit(cache=True)
def _rate(value, time_ms, s, c, last_value, last_ms):
    before = last_value[s, c]
    if math.isnan(value):
        return np.nan
    if math.isnan(before):
        last_value[s, c], last_ms[s, c] = value, time_ms
        return np.nan
    if time_ms <= last_ms[s, c]:
        return np.nan
    growth = value - before if value >= before else value
    rate = growth / ((time_ms - last_ms[s, c]) / 1000.0)
    last_value[s, c], last_ms[s, c] = value, time_ms
    return min(max(rate, -LARGEST_RATE), LARGEST_RATE)
