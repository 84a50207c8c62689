"""When sessions may be due, in order of time: those set lately in memory, all others in RocksDB.

A timer is set when a session opens and not moved by later events, so a session may turn out not to be due when its
timer is; it is then set anew. One that outlives its session is void: whoever looks finds nothing due.

New timers are never due before the watermark, and all saved ones before it have been looked at (those after `limit`
apart), so one cursor tells which saved timers were taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Sequence

from pipeline.cold_rows import ColdRows, Timer, timer_key


class Timers:
    """Timers of one partition.

    Parameters
    ----------
    cold
        Where saved ones lie; None keeps all in memory (files).
    """

    def __init__(self, cold: ColdRows | None) -> None:
        self._cold = cold
        self._fresh: set[Timer] = set()  # not in RocksDB yet
        self._pending: set[Timer] = set()  # those of them that the checkpoint under way brings there
        self._heap: list[Timer] = []
        self._taken: list[bytes] = []  # in RocksDB still, to be deleted by the next checkpoint
        self._cursor = b""
        self._next_saved_ms: int | None = 0  # no saved timer from the cursor on is due before; None: there is none

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, name: str, due_ms: int) -> None:
        """Have a session looked at once the watermark has passed `due_ms`."""
        timer = (due_ms, name)
        if timer not in self._fresh:
            self._fresh.add(timer)
            heapq.heappush(self._heap, timer)

    def due(self, watermark_ms: int, limit: int | None = None) -> list[Timer]:
        """Timers before the watermark, oldest first, at most `limit`; give them to `done` or to `postpone`."""
        saved = self._saved_before(watermark_ms, limit)
        found: list[Timer] = []
        at = 0
        while limit is None or len(found) < limit:
            fresh_is_due = bool(self._heap) and self._heap[0][0] < watermark_ms
            if fresh_is_due and (at == len(saved) or self._heap[0] <= saved[at]):
                found.append(heapq.heappop(self._heap))
            elif at < len(saved):
                found.append(saved[at])
                at += 1
            else:
                break
        return found

    def done(self, timers: Sequence[Timer]) -> None:
        """They were looked at."""
        for timer in timers:
            if timer in self._fresh:
                self._fresh.discard(timer)
                if timer not in self._pending:
                    continue  # it never comes to RocksDB
            else:
                self._cursor = timer_key(timer) + b"\0"
                self._next_saved_ms = timer[0]
            self._taken.append(timer_key(timer))

    def postpone(self, timers: Iterable[Timer]) -> None:
        """Nobody could look at them yet."""
        for timer in set(timers):  # one that a checkpoint has just brought to RocksDB was found in both places
            if timer in self._fresh:
                heapq.heappush(self._heap, timer)

    def drop(self, ended: Container[str]) -> None:
        """Drop the timers in memory of sessions that have ended."""
        self._fresh = {timer for timer in self._fresh if timer[1] not in ended}
        self._order()

    def snapshot(self, ended: Container[str]) -> tuple[list[bytes], list[bytes]]:
        """Keys to put and to delete, by a checkpoint (step 0). `ended`: names of sessions that have since the last."""
        self.drop(ended)
        self._pending = set(self._fresh)
        void, self._taken = self._taken, []
        return [timer_key(timer) for timer in self._fresh], void

    def settle(self) -> None:
        """The snapshot is in RocksDB now."""
        if self._pending:
            first = min(self._pending)[0]
            self._next_saved_ms = first if self._next_saved_ms is None else min(first, self._next_saved_ms)
        self._fresh -= self._pending
        self._pending = set()
        self._order()

    def _saved_before(self, watermark_ms: int, limit: int | None) -> list[Timer]:
        if self._cold is None or self._next_saved_ms is None or self._next_saved_ms >= watermark_ms:
            return []
        found, next_ms = self._cold.timers(self._cursor, watermark_ms, limit)
        if not found:
            self._next_saved_ms = next_ms
        return found

    def _order(self) -> None:
        self._heap = list(self._fresh)
        heapq.heapify(self._heap)
