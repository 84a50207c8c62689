"""Sessions: which events belong together, and when a session is over.

A session is over after its end event, when it holds `max_events`, or when the partition's watermark (the largest
event time so far) has passed its last event by more than `gap_ms`. The last rule is decided by event time alone, when
the session is touched or when someone looks: closing sessions early or late changes no verdict, only when it is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Kinds of operations of a walk.
STEP, END_EVENT, END_GAP, END_LIMIT, END_INPUT = 0, 1, 2, 3, 4
ENDED = {END_EVENT: "event", END_GAP: "gap", END_LIMIT: "limit", END_INPUT: "input"}
NO_WATERMARK = -1  # event times are never negative


@dataclass(frozen=True)
class SessionRules:
    """When a session ends: `gap_ms` of silence, or `max_events` events."""

    gap_ms: int
    max_events: int


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
        (m,) int8: STEP or one of the ends.
    row
        (m,) int32: the session row.
    record
        (m,) int32: for a step the event; for an end the event at which it is seen (-1: before the first).
    first
        (n,) bool: the event opens a session.
    gap_ms
        (n,) int64: since the session's last event; 0 for its first and where the clock went back.
    ended_events, ended_first_ms, ended_last_ms
        (m,) int64: for an end, the closed session's event count and times.
    clocks
        The sessions after the slice.
    watermark_ms
        After the slice.
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
    watermark_ms: int

    @cached_property
    def steps(self) -> NDArray[np.intp]:
        """(n,) position of each event's step, in the events' order."""
        return np.flatnonzero(self.kind == STEP)


def walk_sessions(
    session: NDArray[np.int32], time_ms: NDArray[np.int64], ends: NDArray[np.bool_], clocks: SessionClocks,
    watermark_ms: int, rules: SessionRules, *, close_all: bool = False,
) -> Walk:  # fmt: skip
    """Apply the rules to a slice of n events.

    Parameters
    ----------
    session
        (n,) int32: row of each event.
    time_ms, ends
        (n,) int64 and bool.
    clocks
        Left untouched.
    close_all
        End what is still open (as `input`): a file is over, which Kafka never is.
    """
    n, rows = len(session), len(clocks.events)
    out = np.empty((2 * n + rows, 6), np.int64)
    first, gap_ms = np.zeros(n, np.bool_), np.zeros(n, np.int64)
    after = SessionClocks(clocks.events.copy(), clocks.first_ms.copy(), clocks.last_ms.copy())
    m, watermark = _walk(
        session, time_ms, ends, after.events, after.first_ms, after.last_ms,
        watermark_ms, rules.gap_ms, rules.max_events, close_all, first, gap_ms, out,
    )  # fmt: skip
    kind, row, record, events, first_ms, last_ms = out[:m].T
    return Walk(
        kind.astype(np.int8), row.astype(np.int32), record.astype(np.int32),
        first, gap_ms, events, first_ms, last_ms, after, int(watermark),
    )  # fmt: skip


@njit(cache=True)
def _walk(session, time_ms, ends, events, first_ms, last_ms, watermark, gap, max_events, close_all, first, gap_ms, out):
    """Write operations to `out` as rows of (kind, row, record, events, first_ms, last_ms)."""
    n, m = len(session), 0
    watermarks = np.empty(n, np.int64)
    for i in range(n):
        s, t = session[i], time_ms[i]
        watermark = max(watermark, t)
        watermarks[i] = watermark
        if events[s] > 0 and last_ms[s] + gap < watermark:
            m = _end(END_GAP, s, i, events, first_ms, last_ms, out, m)
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
        if events[s] > 0 and last_ms[s] + gap < watermark:
            seen = np.searchsorted(watermarks, last_ms[s] + gap, side="right") if n else -1
            m = _end(END_GAP, s, seen, events, first_ms, last_ms, out, m)
        elif events[s] > 0 and close_all:
            m = _end(END_INPUT, s, n - 1, events, first_ms, last_ms, out, m)
    return m, watermark


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


def number_sessions(walk: Walk) -> NDArray[np.int32]:
    """(m,) which session each operation belongs to, counted from 0 in order of first events.

    For walks that began without open sessions.
    """
    numbers = np.empty(len(walk.kind), np.int32)
    _number(walk.kind, walk.row, walk.record, walk.first, np.full(len(walk.clocks.events), -1, np.int32), numbers)
    return numbers


@njit(cache=True)
def _number(kind, row, record, first, current, numbers):
    opened = 0
    for o in range(len(kind)):
        if kind[o] == STEP and first[record[o]]:
            current[row[o]] = opened
            opened += 1
        numbers[o] = current[row[o]]
