"""The row store of one partition: a bounded set of hot rows over RocksDB, with the timers of open sessions.

A row that changed stays hot until its copy is in RocksDB. `snapshot` is step 0 of the checkpoint and `settle` its end;
between the two a changed row is pending and cannot be evicted. At most one snapshot is under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from detectors.rows import RowShape, SessionRows
from features.sessions import SessionRules
from pipeline.cold_rows import ColdRows, Timer, session_key
from pipeline.row_format import RowFormat
from pipeline.timers import Timers

_GROWTH = 1_024
_NEVER_OPENED = -1  # no event is that old


@dataclass(frozen=True)
class Snapshot:
    """What changed since the one before: rows by key (None: the session ended), keys of timers to put and to delete."""

    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    timers: list[bytes] = field(default_factory=list)
    void_timers: list[bytes] = field(default_factory=list)


class RowStore:
    """Rows by session name.

    Parameters
    ----------
    shape
        Width of a row.
    rules
        When sessions are due.
    capacity
        Hot rows at most; None for no bound, which needs no RocksDB (files).
    cold
        All saved rows, or None.
    open_sessions
        How many of these there are.
    """

    def __init__(
        self, shape: RowShape, rules: SessionRules, capacity: int | None = None, cold: ColdRows | None = None,
        open_sessions: int = 0,
    ) -> None:  # fmt: skip
        self.format = RowFormat(shape)
        self.capacity = capacity
        self.open_sessions = open_sessions  # hot and cold
        self._cold, self._rules = cold, rules
        size = _GROWTH if capacity is None else min(capacity, _GROWTH)
        self._rows = SessionRows.empty(size, shape)
        self._names: list[str | None] = [None] * size
        self._slots: dict[str, int] = {}
        self._free = list(range(size - 1, -1, -1))
        self._taken, self._dirty, self._pending, self._saved, self._used = (np.zeros(size, np.bool_) for _ in range(5))
        self._hand = 0
        self._gone: set[str] = set()  # ended since the last snapshot, their saved rows still to be deleted
        self._gone_pending: set[str] = set()
        self._ended: set[str] = set()  # those that ended since the last snapshot, saved or not
        self._timers = Timers(cold)
        self.lookups: Counter[str] = Counter()  # where rows were found; whoever reads it begins another

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def changed(self) -> int:
        """Rows that the next snapshot will copy or delete."""
        return int(self._dirty.sum()) + len(self._gone)

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
        missing = [name for name in names if name not in self._slots]
        cold = self._load([n for n in missing if n not in self._gone and n not in self._gone_pending])
        self.lookups.update(hot=len(names) - len(missing), cold=cold, new=len(missing) - cold)
        slots = [self._slots.get(name, -1) for name in names]
        known = np.array([s for s in slots if s >= 0], np.intp)
        self._used[known] = True
        if len(known) == len(slots):
            return self._rows.take(known)
        rows = SessionRows.empty(len(names), self.format.shape)
        rows.put(np.flatnonzero(np.array(slots) >= 0), self._rows.take(known))
        return rows

    def put(self, names: Sequence[str], rows: SessionRows) -> None:
        """Write rows back; those that are not open have ended and go."""
        is_open = rows.is_open
        slots = np.array([self._slots.get(name, -1) for name in names], np.intp)
        for i in np.flatnonzero(~is_open | (slots < 0)).tolist():  # most go on
            if is_open[i]:
                self.open_sessions += 1
                slots[i] = self._slot(names[i])
            else:
                self._end(names[i])
        kept = slots
        if not is_open.all():
            kept, rows = slots[is_open], rows.take(np.flatnonzero(is_open))
        # Later events need no later timer. A session that opens does, also one whose name was open until just now, and
        # one whose earliest event that waits is another.
        new = self._rows.first_ms[kept] != rows.first_ms
        if self._rules.lead_ms == 0:
            changed = (rows.held != self._rows.held[kept]) | (rows.windows != self._rows.windows[kept])
            new |= rows.holds_back & changed
        due_ms = rows.due_ms(self._rules)[new].tolist()
        for slot, due in zip(kept[new].tolist(), due_ms, strict=True):
            self._timers.set(self._name(slot), due)
        self._rows.put(kept, rows)
        self._dirty[kept] = True
        self._used[kept] = True

    def forget(self, names: Sequence[str]) -> None:
        """Drop sessions without a verdict, and have their saved rows deleted whether there are any or not."""
        saved = self._cold.get_many([session_key(n) for n in names]) if self._cold is not None else [None] * len(names)
        for name, value in zip(names, saved, strict=True):
            slot = self._slots.get(name)
            was_open = slot is not None or (
                value is not None and name not in self._gone and name not in self._gone_pending
            )
            self.open_sessions -= was_open
            self._ended.add(name)
            if slot is not None:
                del self._slots[name]
                self._release(slot)
            self._gone.add(name)

    # --- timers --------------------------------------------------------------------------------------------------

    def due(self, watermark_ms: int, limit: int | None = None) -> list[Timer]:
        """Timers before the watermark, oldest first, at most `limit`; give them to `rearm` or to `postpone`."""
        return self._timers.due(watermark_ms, limit)

    def rearm(self, timers: Sequence[Timer], rows: SessionRows) -> None:
        """Set timers anew for those sessions, given their rows after looking, that turned out not to be due."""
        self._timers.done(timers)
        lead_ms = self._rules.lead_ms
        for (due_ms, name), is_open, first_ms, next_ms in zip(
            timers, rows.is_open.tolist(), rows.first_ms.tolist(), rows.due_ms(self._rules).tolist(), strict=True
        ):
            # One due before the session can be is void: it belonged to an earlier session of that name. Where events
            # wait, an older one may come later, so no timer is known to be void; those set anew are one.
            if is_open and (lead_ms == 0 or due_ms >= first_ms + lead_ms):
                self._timers.set(name, next_ms)
        if self._cold is None and len(self._timers) + len(self._ended) > 3 * len(self._slots) + _GROWTH:
            self._timers.drop(self._ended)  # mostly void by now
            self._ended.clear()

    def postpone(self, timers: Sequence[Timer]) -> None:
        """Put back timers that nobody could look at."""
        self._timers.postpone(timers)

    def open_names(self) -> list[str]:
        """Every open session; for files, where all are hot."""
        return list(self._slots)

    def saved_names(self, after: str | None, limit: int) -> list[str]:
        """The saved sessions that follow a name, at most `limit`; none if there are none."""
        assert self._cold is not None, "files save nothing"
        return [name for name, _ in islice(self._cold.sessions(after), limit)]

    # --- the checkpoint's side -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Copy what changed since the last snapshot (checkpoint step 0)."""
        assert not self._pending.any(), "a snapshot is still under way"
        slots = np.flatnonzero(self._dirty)
        values = self.format.encode(self._rows.take(slots))
        names = [self._name(slot) for slot in slots.tolist()]
        rows: dict[bytes, bytes | None] = {session_key(name): None for name in self._gone}
        rows.update(zip(map(session_key, names), values, strict=True))
        self._pending[slots], self._saved[slots], self._dirty[slots] = True, True, False
        self._gone_pending, self._gone = self._gone, set()
        snapshot = Snapshot(rows, *self._timers.snapshot(self._ended))
        self._ended = set()
        return snapshot

    def settle(self) -> None:
        """Release the last snapshot's rows: it is in RocksDB now."""
        self._pending.fill(False)
        self._gone_pending = set()
        self._timers.settle()

    # --- slots ---------------------------------------------------------------------------------------------------

    def _load(self, names: list[str]) -> int:
        """Bring saved rows into slots; returns how many there were."""
        if self._cold is None or not names:
            return 0
        found = [
            (name, value)
            for name, value in zip(names, self._cold.get_many([session_key(n) for n in names]), strict=True)
            if value is not None
        ]
        if not found:
            return 0
        slots = np.array([self._slot(name) for name, _ in found], np.intp)
        self._rows.put(slots, self.format.decode([value for _, value in found]))
        self._saved[slots] = True
        return len(found)

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is None:
            if not self._free:
                assert self.capacity is None, "make_room comes before take and put"
                self._grow(1)
            slot = self._slots[name] = self._free.pop()
            self._names[slot] = name
            self._taken[slot] = True
            self._rows.first_ms[slot] = _NEVER_OPENED
            self._ended.discard(name)
            # A saved row of an earlier session of this name lies in RocksDB until its deletion is settled.
            self._saved[slot] = name in self._gone
            self._gone.discard(name)
        return slot

    def _name(self, slot: int) -> str:
        name = self._names[slot]
        assert name is not None, "only taken slots change or go"
        return name

    def _end(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        self.open_sessions -= 1
        self._ended.add(name)
        if self._saved[slot]:
            self._gone.add(name)
        self._release(slot)

    def _release(self, slot: int) -> None:
        self._names[slot] = None
        self._taken[slot] = self._dirty[slot] = self._pending[slot] = self._saved[slot] = self._used[slot] = False
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
        self._taken, self._dirty, self._pending, self._saved, self._used = (
            np.concatenate([flags, np.zeros(size - old, np.bool_)])
            for flags in (self._taken, self._dirty, self._pending, self._saved, self._used)
        )
        self._free.extend(range(size - 1, old - 1, -1))

    def _evict(self, wanted: int, keep: set[int]) -> None:
        """Clock: pass over the slots, spare those used since the last pass, drop clean ones."""
        size = len(self._names)
        movable = self._taken & ~(self._dirty | self._pending)
        movable[list(keep)] = False
        order = (self._hand + np.arange(size)) % size
        for unused_only in (True, False):
            victims: NDArray[np.intp] = order[movable[order] & ~(self._used[order] & unused_only)][:wanted]
            for slot in victims.tolist():
                del self._slots[self._name(slot)]
                self._release(slot)
            movable[victims] = False
            wanted -= len(victims)
            if len(victims):
                self._hand = int(victims[-1] + 1) % size
            self._used[order] &= not unused_only
            if wanted <= 0:
                return
