"""The row store of one partition: a bounded set of hot rows over RocksDB, and the timers of open sessions.

A row that changed stays hot until its copy is in RocksDB. `snapshot` is step 0 of the checkpoint and `settle` its end;
between the two a changed row is pending and cannot be evicted. At most one snapshot is under way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.rows import RowShape, SessionRows
from pipeline.cold_rows import ColdRows, session_key
from pipeline.row_format import RowFormat

_GROWTH = 1_024
_NEVER = 1 << 62


class RowStore:
    """Rows by session name.

    Parameters
    ----------
    shape
        Width of a row.
    gap_ms
        After which silence a session is due.
    capacity
        Hot rows at most; None for no bound, which needs no RocksDB (files).
    cold
        All saved rows, or None.
    """

    def __init__(self, shape: RowShape, gap_ms: int, capacity: int | None = None, cold: ColdRows | None = None) -> None:
        self.format = RowFormat(shape)
        self.capacity = capacity
        self._cold, self._gap_ms = cold, gap_ms
        size = _GROWTH if capacity is None else min(capacity, _GROWTH)
        self._rows = SessionRows.empty(size, shape)
        self._names: list[str | None] = [None] * size
        self._slots: dict[str, int] = {}
        self._free = list(range(size - 1, -1, -1))
        self._dirty, self._pending, self._saved, self._used = (np.zeros(size, np.bool_) for _ in range(4))
        self._hand = 0
        self._gone: set[str] = set()  # ended since the last snapshot, their saved rows still to be deleted
        self._gone_pending: set[str] = set()
        self._armed: dict[str, int] = {}  # the timer in force of each open session; other heap entries are void
        self._timers: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def open_sessions(self) -> int:
        """Sessions that have not ended, hot or cold."""
        return len(self._armed)

    @property
    def changed(self) -> int:
        """Hot rows that the next snapshot will copy."""
        return int(self._dirty.sum())

    # --- reading and writing -------------------------------------------------------------------------------------

    def make_room(self, names: Sequence[str]) -> bool:
        """Have a slot for each name that is not hot; False if first a checkpoint must let rows go."""
        missing = sum(name not in self._slots for name in names)
        if missing <= len(self._free):
            return True
        if self.capacity is None or len(self._names) < self.capacity:
            self._grow(missing)
        if missing > len(self._free):
            self._evict(missing - len(self._free), {self._slots[n] for n in names if n in self._slots})
        return missing <= len(self._free)

    def take(self, names: Sequence[str]) -> SessionRows:
        """Copies of the rows of these sessions, empty ones where none is open. Call `make_room` first."""
        self._load([n for n in names if n not in self._slots and n not in self._gone and n not in self._gone_pending])
        slots = [self._slots.get(name, -1) for name in names]
        known = np.array([s for s in slots if s >= 0], np.intp)
        self._used[known] = True
        if len(known) == len(slots):
            return self._rows.take(known)
        rows = SessionRows.empty(len(names), self.format.shape)
        rows.put(np.flatnonzero(np.array(slots) >= 0), self._rows.take(known))
        return rows

    def put(self, names: Sequence[str], rows: SessionRows) -> None:
        """Write rows back; those with no events have ended and go."""
        is_open = rows.events > 0
        slots = np.empty(len(names), np.intp)
        due = rows.last_ms + self._gap_ms
        for i, (name, stays) in enumerate(zip(names, is_open.tolist(), strict=True)):
            if not stays:
                self._end(name)
                continue
            slots[i] = self._slot(name)
            # Later events need no later timer; only a session that ended and began anew can be due sooner than before.
            if self._armed.get(name, _NEVER) > due[i]:
                self._arm(name, int(due[i]))
        kept = slots[is_open]
        self._rows.put(kept, rows.take(np.flatnonzero(is_open)))
        self._dirty[kept] = True
        self._used[kept] = True

    # --- timers --------------------------------------------------------------------------------------------------

    def due(self, watermark_ms: int, limit: int | None = None) -> list[str]:
        """Sessions whose timer lies before the watermark, oldest first, at most `limit`.

        A timer is set once and not moved by later events, so a session may turn out not to be due: `rearm` those.
        """
        # A name can stand in the heap twice: when a new session is due just when the one before it was.
        found: dict[str, None] = {}
        while self._timers and self._timers[0][0] < watermark_ms and (limit is None or len(found) < limit):
            due_ms, name = heapq.heappop(self._timers)
            if self._armed.get(name) == due_ms:
                found[name] = None
        return list(found)

    def rearm(self, names: Iterable[str], last_ms: Iterable[int]) -> None:
        """Set anew the timers that `due` took, given each session's last event time; ended sessions need none."""
        for name, last in zip(names, last_ms, strict=True):
            if name in self._armed:
                self._arm(name, last + self._gap_ms)
        if len(self._timers) > 2 * len(self._armed) + _GROWTH:  # mostly timers of sessions that ended otherwise
            self._timers = [(due_ms, name) for name, due_ms in self._armed.items()]
            heapq.heapify(self._timers)

    def postpone(self, names: Iterable[str]) -> None:
        """Put back timers that `due` took but nobody could look at."""
        for name in names:
            heapq.heappush(self._timers, (self._armed[name], name))

    def open_names(self) -> list[str]:
        """Every open session; for files."""
        return list(self._armed)

    def arm_saved(self) -> int:
        """Set a timer for every saved session; after opening. Returns how many there are."""
        if self._cold is None:
            return 0
        at = self.format.last_ms_at
        for name, value in self._cold.sessions():
            due_ms = int.from_bytes(value[at : at + 8], "little") + self._gap_ms
            self._armed[name] = due_ms
            self._timers.append((due_ms, name))
        heapq.heapify(self._timers)
        return len(self._armed)

    def _arm(self, name: str, due_ms: int) -> None:
        self._armed[name] = due_ms
        heapq.heappush(self._timers, (due_ms, name))

    # --- the checkpoint's side -----------------------------------------------------------------------------------

    def snapshot(self) -> dict[bytes, bytes | None]:
        """Copy what changed since the last snapshot: rows by key, None for ended sessions (checkpoint step 0)."""
        assert not self._pending.any(), "a snapshot is still under way"
        slots = np.flatnonzero(self._dirty)
        values = self.format.encode(self._rows.take(slots))
        changes: dict[bytes, bytes | None] = {session_key(name): None for name in self._gone}
        for slot, value in zip(slots.tolist(), values, strict=True):
            name = self._names[slot]
            assert name is not None, "only rows with a name change"
            changes[session_key(name)] = value
        self._pending[slots], self._saved[slots], self._dirty[slots] = True, True, False
        self._gone_pending, self._gone = self._gone, set()
        return changes

    def settle(self) -> None:
        """Release the last snapshot's rows: it is in RocksDB now."""
        self._pending.fill(False)
        self._gone_pending = set()

    # --- slots ---------------------------------------------------------------------------------------------------

    def _load(self, names: list[str]) -> None:
        """Bring saved rows into slots."""
        if self._cold is None or not names:
            return
        found = [
            (name, value)
            for name, value in zip(names, self._cold.get_many([session_key(n) for n in names]), strict=True)
            if value is not None
        ]
        if not found:
            return
        slots = np.array([self._slot(name) for name, _ in found], np.intp)
        self._rows.put(slots, self.format.decode([value for _, value in found]))
        self._saved[slots] = True

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is None:
            if not self._free:
                assert self.capacity is None, "make_room comes before take and put"
                self._grow(1)
            slot = self._slots[name] = self._free.pop()
            self._names[slot] = name
            # A saved row of an earlier session of this name lies in RocksDB until its deletion is settled.
            self._saved[slot] = name in self._gone
            self._gone.discard(name)
        return slot

    def _end(self, name: str) -> None:
        self._armed.pop(name, None)
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        if self._saved[slot]:
            self._gone.add(name)
        self._release(slot)

    def _release(self, slot: int) -> None:
        self._names[slot] = None
        self._dirty[slot] = self._pending[slot] = self._saved[slot] = self._used[slot] = False
        self._free.append(slot)

    def _grow(self, wanted: int) -> None:
        old = len(self._names)
        size = max(2 * old, old + wanted)
        size = size if self.capacity is None else min(size, self.capacity)
        if size <= old:
            return
        rows = SessionRows.empty(size, self.format.shape)
        rows.put(np.arange(old), self._rows)
        self._rows = rows
        self._names.extend([None] * (size - old))
        self._dirty, self._pending, self._saved, self._used = (
            np.concatenate([flags, np.zeros(size - old, np.bool_)])
            for flags in (self._dirty, self._pending, self._saved, self._used)
        )
        self._free.extend(range(size - 1, old - 1, -1))

    def _evict(self, wanted: int, keep: set[int]) -> None:
        """Clock: pass over the slots, spare those used since the last pass, drop clean ones."""
        size = len(self._names)
        movable = ~(self._dirty | self._pending) & np.array([n is not None for n in self._names])
        movable[list(keep)] = False
        order = (self._hand + np.arange(size)) % size
        for unused_only in (True, False):
            victims: NDArray[np.intp] = order[movable[order] & ~(self._used[order] & unused_only)][:wanted]
            for slot in victims.tolist():
                name = self._names[slot]
                assert name is not None, "only rows with a name are movable"
                del self._slots[name]
                self._release(slot)
            movable[victims] = False
            wanted -= len(victims)
            if len(victims):
                self._hand = int(victims[-1] + 1) % size
            self._used[order] &= not unused_only
            if wanted <= 0:
                return
