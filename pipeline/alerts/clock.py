"""The clock of alerts: the wall's when the process started, and from then on one that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Milliseconds since 1970 that neither jump nor go backwards while the process runs.

    A clock that is set by an hour would let all retries of an hour leave at once, or none for an hour. It fails to
    follow a wall clock that is corrected: what has to do with hours of the day asks the wall.
    """

    def __init__(
        self, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._monotonic, self.wall_ms = monotonic, wall_ms
        self._began_ms, self._began = wall_ms(), monotonic()

    def now_ms(self) -> int:
        """Now."""
        return self._began_ms + round((self._monotonic() - self._began) * 1000)
