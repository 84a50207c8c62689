"""Who learns and who is held back: sessions in order of time, none of them in two parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shares of the sessions, in order of their first events: to learn from, to stop at, and (the rest) to calibrate on.
LEARN, VALIDATE = 0.7, 0.1


@dataclass(frozen=True)
class Split:
    """Which of S sessions a model learns from, stops at, and is calibrated on: (S,) bool each, no session in two."""

    learn: NDArray[np.bool_]
    validate: NDArray[np.bool_]
    calibrate: NDArray[np.bool_]


def split_by_time(first_ms: NDArray[np.int64]) -> Split:
    """The earliest sessions teach and the latest calibrate, as a model meets data from later than it has seen.

    Parameters
    ----------
    first_ms
        (S,) time of each session's first event.
    """
    order = np.argsort(first_ms, kind="stable")
    learnt, validated = int(len(order) * LEARN), int(len(order) * (LEARN + VALIDATE))
    parts = np.zeros((3, len(order)), np.bool_)
    parts[0, order[:learnt]] = True
    parts[1, order[learnt:validated]] = True
    parts[2, order[validated:]] = True
    return Split(*parts)
