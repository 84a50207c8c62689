"""Whether a worker is alive, and whether all it was assigned is open: what /healthz and /ready say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

ALIVE_S = 30.0  # a turn of the loop takes milliseconds, and what takes longer in it is awaited

StreamPartition = tuple[str, int]


@dataclass
class _Recovery:
    """A partition's rows on their way back; the rate is that since the first report."""

    since: float
    first_rows: int
    rows: int
    total: int
    rows_per_s: float = 0.0
    opened: bool = False

    def report(self, now: float, rows: int, total: int) -> None:
        self.rows, self.total = rows, total
        if now > self.since:
            self.rows_per_s = (rows - self.first_rows) / (now - self.since)

    def seconds_left(self) -> float | None:
        if self.opened:
            return 0.0
        return max(0, self.total - self.rows) / self.rows_per_s if self.rows_per_s > 0 else None


class Health:
    """What the event loop says of itself, for pages and guards in other threads. Every method may run in any thread.

    Parameters
    ----------
    clock
        Monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._beat = clock()  # until the loop turns, its start counts: a loop that never turns is dead, too
        self._assigned: frozenset[StreamPartition] | None = None
        self._known: dict[StreamPartition, _Recovery] = {}
        self._copying: dict[str, bool] = {}

    # --- said by the event loop ----------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that the event loop turns; about once a second."""
        self._beat = self._clock()

    def assigned(self, partitions: Iterable[StreamPartition]) -> None:
        """Say that a rebalance gave us these, and no others; what is open stays open."""
        with self._lock:
            self._assigned = frozenset(partitions)
            self._known = {p: known for p, known in self._known.items() if p in self._assigned}

    def revoked(self) -> None:
        """Say that a rebalance has begun: until the next assignment we are not ready."""
        with self._lock:
            self._assigned = None

    def recovering(self, stream: str, partition: int, rows: int, total: int) -> None:
        """Say how many rows of a partition are back, and of how many; call it with 0 rows at the start."""
        now = self._clock()
        with self._lock:
            known = self._known.get((stream, partition))
            if known is None or known.opened or rows < known.rows:  # a recovery of its own, not more of the last
                known = self._known[stream, partition] = _Recovery(now, rows, rows, total)
            known.report(now, rows, total)

    def opened(self, stream: str, partition: int) -> None:
        """Say that records of the partition flow."""
        with self._lock:
            known = self._known.setdefault((stream, partition), _Recovery(self._clock(), 0, 0, 0))
            known.opened = True

    def closed(self, stream: str, partition: int) -> None:
        """Say that they do not any more."""
        with self._lock:
            self._known.pop((stream, partition), None)

    def repartitioning(self, stream: str, *, is_copying: bool) -> None:
        """Say whether a repartitioned stream's records are being brought to its internal topic."""
        with self._lock:
            self._copying[stream] = is_copying

    # --- asked by others -----------------------------------------------------------------------------------------

    def beat_age_s(self) -> float:
        """How long ago the event loop last turned."""
        return self._clock() - self._beat

    def alive(self) -> tuple[bool, dict[str, Any]]:
        """Whether the event loop turns, and the body of /healthz."""
        age = self.beat_age_s()
        return age < ALIVE_S, {"alive": age < ALIVE_S, "beat_age_s": round(age, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether an assignment has come and all of it is open, and the body of /ready.

        A worker that was assigned nothing, because there are more workers than partitions, is ready. Repartitioned
        streams stand in the body with whether their records are being copied, which must be so, too.
        """
        with self._lock:
            partitions = [_row(p, self._known.get(p)) for p in sorted(self._assigned or ())]
            ready = self._assigned is not None and all(row["state"] == "open" for row in partitions)
            ready = ready and all(self._copying.values())
            body = {"ready": ready, "assigned": self._assigned is not None, "partitions": partitions}
            return ready, body | ({"repartitioning": dict(self._copying)} if self._copying else {})


def _row(partition: StreamPartition, known: _Recovery | None) -> dict[str, Any]:
    state, rows, rate, left = "opening", 0, 0.0, None
    if known is not None:
        state, rows, rate = "open" if known.opened else "recovering", known.rows, round(known.rows_per_s, 1)
        left = known.seconds_left()
    return {
        "stream": partition[0], "partition": partition[1], "state": state, "rows": rows, "rows_per_s": rate,
        "seconds_left": None if left is None else round(left, 1),
    }  # fmt: skip
