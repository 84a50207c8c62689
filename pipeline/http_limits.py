"""How much one address may ask of our pages, so that one client in a loop leaves room for the others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

MOST_CONNECTIONS, MOST_OF_ONE = 64, 32
REQUESTS_PER_S, BURST = 20.0, 100.0
MOST_HEAD_BYTES = 16_384  # a request's line and headers together
_MOST_REMEMBERED = 1_024  # addresses


class Limits:
    """Connections open at once, and requests by token bucket; may be used from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: Counter[str] = Counter()
        self._left: dict[str, tuple[float, float]] = {}  # requests left, as of when

    def enter(self, address: str) -> bool:
        """Whether one more connection of an address may stay; `leave` ends it."""
        with self._lock:
            if self._open.total() >= MOST_CONNECTIONS or self._open[address] >= MOST_OF_ONE:
                return False
            self._open[address] += 1
            return True

    def leave(self, address: str) -> None:
        """A connection that might stay has ended."""
        with self._lock:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def may_ask(self, address: str) -> bool:
        """Whether a request of an address is answered now; it counts if so."""
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(address, (BURST, now))
            left = min(BURST, left + (now - since) * REQUESTS_PER_S)
            # The address comes last in the order, so the first is the one that has asked nothing for longest.
            self._left[address] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > _MOST_REMEMBERED:
                del self._left[next(iter(self._left))]
            return left >= 1
