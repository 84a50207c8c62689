"""Duplicates: events whose id was among the last ones of their partition, as producers that try again make them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_ID = 0  # an event without an id is never a duplicate
U64 = NDArray[np.uint64]


def find_duplicates(ids: U64, recent: U64, remembered: int) -> tuple[NDArray[np.bool_], U64]:
    """Tell which events are duplicates.

    Parameters
    ----------
    ids
        (n,) stable hashes of event ids, `NO_ID` where there is none; two ids share a hash once in 1.8e19.
    recent
        (k,) the partition's last distinct ids before, oldest first; k <= `remembered`. Left untouched.
    remembered
        How many are remembered; 0: every event is new.

    Returns
    -------
    is_duplicate, recent
        (n,), and the last ids after.
    """
    is_duplicate = np.zeros(len(ids), np.bool_)
    if not remembered:
        return is_duplicate, recent
    known = set(recent.tolist())
    last = recent.tolist()
    oldest = 0
    for i, identity in enumerate(ids.tolist()):
        if identity in known:
            is_duplicate[i] = True
        elif identity != NO_ID:
            known.add(identity)
            last.append(identity)
            if len(last) - oldest > remembered:
                known.discard(last[oldest])
                oldest += 1
    return is_duplicate, np.array(last[oldest:], np.uint64)
