"""A budget of work in thousands of offsets: what has its turn depends on the log alone, and never on clock or load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1_000  # offsets that a budget is for
Spent = tuple[tuple[int, int], tuple[int, int]]  # of records and of sessions, as `Budget.spent` gives them


@dataclass
class Budget:
    """Passes that one kind of anomaly had in the latest thousand of offsets."""

    block: int
    used: int

    @property
    def spent(self) -> tuple[int, int]:
        """What is kept of it."""
        return self.block, self.used

    def since(self, next_offset: int) -> Budget:
        """The same, or a new one where the source was made anew or its offset reset."""
        return Budget(0, 0) if self.block * BLOCK > next_offset else self

    def first(self, found: NDArray[np.intp], offsets: NDArray[np.int64], passes: int) -> NDArray[np.intp]:
        """Those of what was found that have a pass."""
        chosen = np.zeros(len(found), np.bool_)
        for i, offset in enumerate(offsets.tolist()):
            if offset // BLOCK > self.block:
                self.block, self.used = offset // BLOCK, 0
            chosen[i] = self.used < passes
            self.used += int(chosen[i])
        return found[chosen]
