"""Tags over a session: where a bad stretch begins (B), goes on (I), and what lies outside of any (O).

A session is normal or bad, which nobody sees; a hidden Markov chain of these two states is filtered record by record.
p-values of normal records are uniform, or larger (density at most 1); those of a bad stretch have density a p^(a - 1),
which is large where p is small. The filtered probability that the session is bad, given its records so far, rises above
`HIGH` where a stretch begins and must fall below `LOW` for it to end, so that one normal record does not tear it.

A session turns bad with odds of `rate` at each record, the promise itself. Then, while all is normal, the odds of
being bad gain at most `rate` a record on average, if each p-value is valid given those before it (and `rate` is at most
1 / 9). So with `HIGH` at one half, a normal session of n records has a bad stretch with a probability of at most
n x rate, as it has a single alarm.

References
----------
Rabiner 1989, doi:10.1109/5.18626: the filter (its forward variable). Sellke, Bayarri and Berger 2001,
doi:10.1198/000313001300339950: the density under the alternative. Shiryaev 1963, doi:10.1137/1108002: alarms by the
odds that a change has happened, and how rare they are in vain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.sessions import LATE, STEP, Walk

HIGH, LOW = 0.5, 0.1
_LEAVE = 0.1  # a bad stretch has ten records on average
_BAD = 0.2  # a: half of a bad stretch's p-values are below 0.5 ** 5 = 0.03
_LEAST = 1e-12  # calibrated p-values are no smaller
NO_TAG = 0.0


@dataclass(frozen=True)
class Tags:
    """Tags of the m operations of a walk.

    Attributes
    ----------
    state
        (m,) float32: of a record the session's state after it, of an end that before it; 0 where there is no tag.
    begins
        (m,) whether a stretch begins there.
    """

    state: NDArray[np.float32]
    begins: NDArray[np.bool_]

    def of(self, operation: int) -> dict[str, Any]:
        """`tag` and `tag_confidence`, the probability that it is right; both None while nothing is known."""
        state = float(self.state[operation])
        if state == NO_TAG:
            return {"tag": None, "tag_confidence": None}
        if state > 0.0:
            return {"tag": "O", "tag_confidence": 1.0 - state}
        return {"tag": "B" if self.begins[operation] else "I", "tag_confidence": -state}

    def persists(self, operation: int) -> bool:
        """Whether a stretch that began earlier goes on."""
        return bool(self.state[operation] < 0.0 and not self.begins[operation])


def tag_walk(
    walk: Walk, p_values: NDArray[np.float64] | None, state: NDArray[np.float32], rate: float
) -> tuple[Tags, NDArray[np.float32]]:
    """Filter a slice's records in the order of the walk.

    Parameters
    ----------
    p_values
        (n,) of records, as they are told; one that is NaN leaves the state as it is. None: there are none.
    state
        (S,) float32 of each session, left untouched: the probability that it is bad after its last record, with a minus
        sign while a stretch lasts; 0 before its first p-value.
    rate
        The promise, in (0, 1).

    Returns
    -------
    tags, state
        Tags of operations, and states after. Late records have no tag and change nothing.
    """
    if p_values is None:
        p_values = np.full(len(walk.first), np.nan)
    m, after = len(walk.kind), state.copy()
    tags = Tags(np.zeros(m, np.float32), np.zeros(m, np.bool_))
    _tag(walk.kind, walk.row, walk.record, walk.first, p_values, rate, after, tags.state, tags.begins)
    return tags, after


@njit(cache=True)
def _tag(kind, row, record, first, p_values, rate, state, told, begins):
    """Write m operations' states into `told` and `begins`, and what remains into (S,) `state`."""
    for o in range(len(kind)):
        s, i = row[o], record[o]
        if kind[o] == LATE:
            continue
        if kind[o] != STEP:
            told[o], state[s] = state[s], NO_TAG
            continue
        if first[i]:
            state[s] = NO_TAG  # nothing of an earlier session of that name
        if math.isnan(p_values[i]):
            continue
        was_inside = state[s] < 0
        bad = np.float32(_filter(np.float64(abs(state[s])), p_values[i], rate))
        inside = bad >= (LOW if was_inside else HIGH)
        state[s] = -bad if inside else bad
        told[o], begins[o] = state[s], inside and not was_inside


@njit(cache=True)
def _filter(bad, p_value, rate):
    """Probability that a session is bad after a record, given that before it; never 0."""
    enter = rate / (1.0 + rate)
    before = bad * (1.0 - _LEAVE) + (1.0 - bad) * enter
    weight = before * (_BAD * max(p_value, _LEAST) ** (_BAD - 1.0))
    return weight / (weight + 1.0 - before)
