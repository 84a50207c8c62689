"""What no bundle shapes of a session's state, and so goes on under the next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detectors.ensemble import Ensemble
from detectors.rows import NO_BUNDLE, SessionRows
from models.runtime import Runtime
from models.seasonal import SeasonalRuntime


def keep_own_past(rebuilt: SessionRows, rows: SessionRows, stale: NDArray[np.intp], runtime: Runtime) -> None:
    """Put back into stale rows that were rebuilt what the bundle before it would have given as well.

    The seasonal core learns of each session alone, over weeks that a context of some events does not hold. Where it
    judges alone, what was strangest stays so too.
    """
    going_on = stale[rows.bundle[stale] != NO_BUNDLE]
    for columns in _own_columns(runtime):
        rebuilt.hidden[going_on, columns] = rows.hidden[going_on, columns]
    if isinstance(runtime, SeasonalRuntime):
        rebuilt.worst[going_on] = rows.worst[going_on]
        rebuilt.worst_offset[going_on] = rows.worst_offset[going_on]


def _own_columns(runtime: Runtime) -> Iterator[slice]:
    if isinstance(runtime, SeasonalRuntime):
        yield slice(0, runtime.width)
    if isinstance(runtime, Ensemble):
        low = 0
        for member in runtime.members:
            if isinstance(member.runtime, SeasonalRuntime):
                yield slice(low, low + member.width)
            low += member.width
