"""Growth of counters: what a number that only grows has grown since the sample before, many samples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.runs import begins, running_max

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


def grow(
    values: Floats, time_ms: Times, episode: NDArray[np.int64], before: Floats, before_ms: Times,
    before_episode: NDArray[np.int64],
) -> tuple[Floats, NDArray[np.intp]]:  # fmt: skip
    """Growth of one counter over m samples of many episodes.

    Parameters
    ----------
    values, time_ms, episode
        (m,) in the order in which they count; `episode` never falls.
    before, before_ms, before_episode
        (k,) what was known before: a value, when it was, and the episode that goes on from it, each at most once.

    Returns
    -------
    growth
        (m,) since the last sample that counted; where the value is smaller, the counter began anew and has grown by
        what it shows. NaN for an episode's first value, a missing one, and one whose time is not after that of every
        value before it, which does not count.
    counted
        Which samples counted.
    """
    there = np.flatnonzero(~np.isnan(values))
    order = np.argsort(np.concatenate([before_episode, episode[there]]), kind="stable")
    value = np.concatenate([before, values[there]])[order]
    moment = np.concatenate([before_ms, time_ms[there]])[order]
    of = np.concatenate([before_episode, episode[there]])[order]
    sample = np.concatenate([np.full(len(before), -1, np.intp), there])[order]

    is_first = begins(of)
    counts = is_first.copy()
    counts[1:] |= moment[1:] > running_max(moment, is_first)[:-1]
    value, sample, is_first = value[counts], sample[counts], is_first[counts]
    grown = np.full(len(value), np.nan)
    grown[1:] = np.where(value[1:] >= value[:-1], value[1:] - value[:-1], value[1:])
    grown[is_first] = np.nan
    growth = np.full(len(values), np.nan)
    is_sample = sample >= 0
    growth[sample[is_sample]] = grown[is_sample]
    return growth, sample[is_sample]
