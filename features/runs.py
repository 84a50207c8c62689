"""Runs: stretches of a column whose keys stay the same, and what holds along each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def begins(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """(m,) where a run of equal keys begins."""
    first = np.ones(len(keys[0]), np.bool_)
    first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return first


def finishes(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """(m,) where a run of equal keys ends."""
    last = np.ones(len(keys[0]), np.bool_)
    last[:-1] = begins(*keys)[1:]
    return last


def running_max(values: NDArray[np.int64], is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(m,) largest value so far of each run; `is_first` says where runs begin."""
    if bool(np.all((values[1:] >= values[:-1]) | is_first[1:])):
        return values
    distinct, rank = np.unique(values, return_inverse=True)
    below = np.cumsum(is_first) * len(distinct)  # lifts each run above those before it
    largest: NDArray[np.int64] = distinct[np.maximum.accumulate(below + rank) - below]
    return largest
