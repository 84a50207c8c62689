"""Operations of sessions at random, for what scores and steps."""

from __future__ import annotations

import numpy as np

from models.kernels import LATE, STEP

END = 2


def draw_operations(
    rng: np.random.Generator, is_open: np.ndarray, count: int, hot: float = 0.0
) -> tuple[list[int], list[int], list[int], list[bool]]:
    """Kinds, rows, records and openings, as `walk_sessions` gives them.

    Sessions end and open again, some events are late. A share `hot` of all falls on row 0. `is_open` (S,) tells which
    rows are open, and is kept up.
    """
    kind: list[int] = []
    row: list[int] = []
    record: list[int] = []
    first: list[bool] = []
    for _ in range(count):
        s = 0 if rng.random() < hot else int(rng.integers(len(is_open)))
        what = int(rng.choice([STEP, STEP, STEP, STEP, LATE, END]))
        if what == END and not is_open[s]:
            continue
        if what != END:
            first.append(not is_open[s])
        kind.append(what)
        row.append(s)
        record.append(len(first) - 1)
        is_open[s] = (is_open[s] or what == STEP) and what != END
    return kind, row, record, first
