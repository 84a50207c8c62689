"""Time gaps as a number of the events: how long after its session's previous event each came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.numbers import LOW, MISSING
from features.sessions import Walk

GAP = "@gap_s"  # what the column is called, with its unit; no field of a record, as `@key` is none
LEAST_GAPS = 50  # of a name: fewer are no estimate of what is usual, and of tails least of all


def time_gaps(walk: Walk) -> NDArray[np.float64]:
    """(n,) seconds since the latest event of the session; 0 where the clock went back.

    Missing (NaN) for a session's first event, and for a late one: when it came says nothing about its session.
    """
    return np.where(walk.first | walk.is_late, np.nan, walk.gap_ms / 1000.0)


def frequent_enough(names: Sequence[str | None], gaps: NDArray[np.float64]) -> list[str | None]:
    """Names of the events of (n,) gaps, None for those that had too few: no gap of theirs is a surprise.

    >>> names, gaps = ["open", "pay"] * LEAST_GAPS, np.array([np.nan, 0.2] * LEAST_GAPS)
    >>> frequent_enough(names, gaps)[:2]
    [None, 'pay']
    """
    counts = Counter(name for name, missing in zip(names, np.isnan(gaps).tolist(), strict=True) if not missing)
    return [None if counts[name] < LEAST_GAPS else name for name in names]


def allow_known(among: NDArray[np.int32], ids: NDArray[np.int32]) -> None:
    """Narrow in place (n, 2) ranges of the (n,) ids of gaps, as `NumberEncoder.among` gives them.

    Whether an event has a gap follows from whether it is its session's first, so a missing one is no surprise at all,
    and none of a gap's goes into its being there.
    """
    among[ids == MISSING, 1] = MISSING + 1
    among[ids >= LOW, 0] = LOW
