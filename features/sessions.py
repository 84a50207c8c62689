"""Sessions: which events belong together, and when a session is over.

A session is over after its end event, when it holds `max_events`, or when the partition's watermark (the largest
event time so far, less what is waited for events out of order) has passed its last event by more than `gap_ms` or its
first by more than `max_duration_ms`. The last two are decided by event time alone, when the session is touched or when
someone looks: closing sessions early or late changes no verdict, only when it is seen.

An event too far behind its session, or behind all sessions of its time, is late where the stream says so: it is scored
under the state there is, and neither steps it nor counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    from features.event_order import Ordered

# Kinds of operations of a walk: two of an event, four ends of a session.
STEP, END_EVENT, END_GAP, END_LIMIT, END_INPUT, LATE = 0, 1, 2, 3, 4, 5
ENDED = {END_EVENT: "event", END_GAP: "gap", END_LIMIT: "limit", END_INPUT: "input"}
NO_WATERMARK = -1  # event times are never negative
NEVER_MS = 2**62  # a duration that no event passes
_NEVER_LATE = -1


@dataclass(frozen=True)
class SessionRules:
    """When a session ends, and what becomes of events out of order.

    Attributes
    ----------
    gap_ms, max_events, max_duration_ms
        A session ends after so much silence, with so many events, or so long after its first event.
    reorder_ms, reorder_events
        An event waits until the watermark is so far past it, or its session has so many waiting.
    allowed_ms
        One further behind its session than that is late; None: none ever is.
    windowed
        What counts as an event is a window of samples (features/windows.py).
    """

    gap_ms: int
    max_events: int
    max_duration_ms: int = NEVER_MS
    reorder_ms: int = 0
    reorder_events: int = 16
    allowed_ms: int | None = None
    windowed: bool = False

    @property
    def lead_ms(self) -> int:
        """How long after a session's first event anything can become due at the earliest."""
        return 0 if self.reorder_ms or self.windowed else min(self.gap_ms, self.max_duration_ms)

    def over_ms(self, first_ms: NDArray[np.int64], last_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S,) after which watermark sessions with these first and last events are over."""
        return np.minimum(last_ms + self.gap_ms, first_ms + self.max_duration_ms)


@dataclass(frozen=True)
class SessionClocks:
    """What the rules need to know of S sessions, one row each.

    Attributes
    ----------
    events
        (S,) int64: events so far; 0 where no session is open.
    first_ms, last_ms
        (S,) int64: time of the first event, and largest event time.
    """

    events: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]


@dataclass(frozen=True)
class Walk:
    """A slice as operations on sessions: steps and ends, each session's in their right order.

    Attributes
    ----------
    kind
        (m,) int8: STEP, LATE or one of the ends.
    row
        (m,) int32: the session row.
    record
        (m,) int32: for an event's operation the event; for an end the event at which it is seen (-1: before the first).
    first
        (n,) bool: the event opens a session, or is late and belongs to none that is open.
    gap_ms
        (n,) int64: since the session's last event; 0 for its first and where the clock went back.
    ended_events, ended_first_ms, ended_last_ms
        (m,) int64: for an end, the closed session's event count and times.
    clocks
        The sessions after the slice.
    """

    kind: NDArray[np.int8]
    row: NDArray[np.int32]
    record: NDArray[np.int32]
    first: NDArray[np.bool_]
    gap_ms: NDArray[np.int64]
    ended_events: NDArray[np.int64]
    ended_first_ms: NDArray[np.int64]
    ended_last_ms: NDArray[np.int64]
    clocks: SessionClocks

    @cached_property
    def of_events(self) -> NDArray[np.intp]:
        """(n,) position of each event's operation, in the events' order."""
        return np.flatnonzero((self.kind == STEP) | (self.kind == LATE))

    @cached_property
    def of_ends(self) -> NDArray[np.intp]:
        """Positions of the ends, in the order they were seen to."""
        ends = np.flatnonzero((self.kind != STEP) & (self.kind != LATE))
        return ends[np.argsort(self.record[ends], kind="stable")]

    @cached_property
    def places_of_ends(self) -> NDArray[np.intp]:
        """Which of the ends, in the order of operations, each of `of_ends` is."""
        return np.searchsorted(np.sort(self.of_ends), self.of_ends)

    @cached_property
    def steps(self) -> NDArray[np.intp]:
        """Positions of the steps: of all events that are not late."""
        return np.flatnonzero(self.kind == STEP)

    @property
    def is_late(self) -> NDArray[np.bool_]:
        """(n,) whether the event came too late."""
        return np.equal(self.kind[self.of_events], LATE)

    @property
    def opens(self) -> NDArray[np.bool_]:
        """(n,) whether the event opens a session."""
        return self.first & ~self.is_late


def walk_sessions(ordered: Ordered, clocks: SessionClocks, rules: SessionRules, *, close_all: bool = False) -> Walk:
    """Apply the rules to the n events of a slice.

    Parameters
    ----------
    ordered
        Events in the order in which they count; `session` numbers rows.
    clocks
        Left untouched.
    close_all
        End what is still open (as `input`): a file is over, which Kafka never is.
    """
    events_ = ordered.events
    n, rows = len(events_), len(clocks.events)
    out = np.empty((2 * n + rows, 6), np.int64)
    first, gap_ms = np.zeros(n, np.bool_), np.zeros(n, np.int64)
    after = SessionClocks(clocks.events.copy(), clocks.first_ms.copy(), clocks.last_ms.copy())
    m = _walk(
        events_.session, events_.time_ms, events_.ends, ordered.watermarks, ordered.seen_at, ordered.release_ms,
        after.events, after.first_ms, after.last_ms, rules.gap_ms, rules.max_events, rules.max_duration_ms,
        _NEVER_LATE if rules.allowed_ms is None else rules.allowed_ms, close_all, first, gap_ms, out,
    )  # fmt: skip
    kind, row, record, events, first_ms, last_ms = out[:m].T
    return Walk(
        kind.astype(np.int8), row.astype(np.int32), record.astype(np.int32),
        first, gap_ms, events, first_ms, last_ms, after,
    )  # fmt: skip


@njit(cache=True)
def _walk(
    session, time_ms, ends, watermarks, seen_at, watermark, events, first_ms, last_ms,
    gap, max_events, max_duration, allowed, close_all, first, gap_ms, out,
):  # fmt: skip
    """Write operations to `out` as rows of (kind, row, record, events, first_ms, last_ms)."""
    n, m = len(session), 0
    for i in range(n):
        s, t = session[i], time_ms[i]
        if events[s] > 0 and min(last_ms[s] + gap, first_ms[s] + max_duration) < watermarks[i]:
            m = _end_over(s, i, gap, max_duration, events, first_ms, last_ms, out, m)
        if allowed != _NEVER_LATE:
            behind = t < last_ms[s] - allowed if events[s] > 0 else t + min(gap, max_duration) < watermarks[i]
            if behind:
                first[i] = events[s] == 0
                out[m, 0], out[m, 1], out[m, 2], out[m, 3], out[m, 4], out[m, 5] = LATE, s, i, 0, 0, 0
                m += 1
                continue
        if events[s] == 0:
            first[i] = True
            first_ms[s] = t
            last_ms[s] = t
        else:
            gap_ms[i] = max(0, t - last_ms[s])
            last_ms[s] = max(last_ms[s], t)
        events[s] += 1
        out[m, 0], out[m, 1], out[m, 2], out[m, 3], out[m, 4], out[m, 5] = STEP, s, i, 0, 0, 0
        m += 1
        if ends[i]:
            m = _end(END_EVENT, s, i, events, first_ms, last_ms, out, m)
        elif events[s] >= max_events:
            m = _end(END_LIMIT, s, i, events, first_ms, last_ms, out, m)
    for s in range(len(events)):
        if events[s] == 0:
            continue
        over = min(last_ms[s] + gap, first_ms[s] + max_duration)
        if over < watermark:
            seen = min(np.searchsorted(seen_at, over, side="right"), n - 1)
            m = _end_over(s, seen, gap, max_duration, events, first_ms, last_ms, out, m)
        elif close_all:
            m = _end(END_INPUT, s, n - 1, events, first_ms, last_ms, out, m)
    return m


@njit(cache=True)
def _end_over(s, seen, gap, max_duration, events, first_ms, last_ms, out, m):
    """End by silence or by duration, whichever came first."""
    silent = last_ms[s] + gap <= first_ms[s] + max_duration
    return _end(END_GAP if silent else END_LIMIT, s, seen, events, first_ms, last_ms, out, m)


@njit(cache=True)
def _end(how, s, seen, events, first_ms, last_ms, out, m):
    out[m, 0], out[m, 1], out[m, 2] = how, s, seen
    out[m, 3], out[m, 4], out[m, 5] = events[s], first_ms[s], last_ms[s]
    events[s], first_ms[s], last_ms[s] = 0, 0, 0
    return m + 1


@njit(cache=True)
def log_gaps(gap_ms):
    """(n,) float32 log(1 + seconds) of (n,) int64 gaps; one scalar logarithm each, so no value depends on another."""
    out = np.empty(len(gap_ms), np.float32)
    for i in range(len(gap_ms)):
        out[i] = np.float32(math.log1p(gap_ms[i] / 1000.0))
    return out


def number_sessions(walk: Walk, longest: int = 2**31 - 1) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the sessions of a walk that began without open ones.

    Parameters
    ----------
    longest
        A session of more events counts as several, each of that many.

    Returns
    -------
    numbers, begins
        (m,) which session each operation belongs to, counted from 0 in order of first events (-1: a late event before
        any), and the event each begins with.
    """
    numbers, begins = np.empty(len(walk.kind), np.int32), np.empty(len(walk.first), np.int32)
    rows = len(walk.clocks.events)
    current, events = np.full(rows, -1, np.int32), np.zeros(rows, np.int64)
    found = _number(walk.kind, walk.row, walk.record, walk.first, current, events, longest, numbers, begins)
    return numbers, begins[:found]


@njit(cache=True)
def _number(kind, row, record, first, current, events, longest, numbers, begins):
    found = 0
    for o in range(len(kind)):
        s = row[o]
        if kind[o] == STEP:
            if first[record[o]] or events[s] == longest:
                current[s], begins[found] = found, record[o]
                found += 1
                events[s] = 0
            events[s] += 1
        numbers[o] = current[s]
    return found
