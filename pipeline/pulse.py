"""Whether the group can still count on this worker, so that one that was stopped and woken does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

SESSION_TIMEOUT_S = 10.0  # a dead worker's partitions go to others after that; heartbeats come eight times as often


class Pulse:
    """When the broker last answered something we sent.

    A worker that was stopped for longer than the session timeout wakes with an old pulse: others may have its
    partitions by now. The clock counts on while a process is stopped.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.at = monotonic()

    def felt(self, left_at: float) -> None:
        """A heartbeat or a join that left at this time was answered."""
        self.at = max(self.at, left_at)

    def is_alive(self, also_at: float) -> bool:
        """False once a partition may be another's; `also_at`: when its last commit left, which nobody else's had."""
        return self._monotonic() - max(self.at, also_at) < SESSION_TIMEOUT_S
