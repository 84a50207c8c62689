"""What is remembered: a row for every open session, and one for the partition. Columns, so a slice moves as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.kept import Kept
from detectors.online import OnlineState
from detectors.promise_keeper import KeeperState
from detectors.schema_watch import SchemaState
from features.event_order import NOTHING_HELD, earliest_ms
from features.open_windows import NO_WINDOWS, next_close_ms
from features.profiles import FREE, count_token, token_key
from features.sessions import NEVER_MS, NO_WATERMARK, SessionClocks, SessionRules

NO_BUNDLE = 0  # a row no model has scored yet
NO_OFFSET = -1
_STEP, _LATE = 0, 5


@dataclass(frozen=True)
class SessionRows:
    """S session rows. H = hidden size, W = events of context, F = token fields, N = numbers, C = counters among them.

    P = entries of the profile.

    Attributes
    ----------
    events, first_ms, last_ms
        (S,) int64: events so far (0: the session is not open), time of the first event, largest event time.
    applied
        (S,) int64: offset of the last event taken in.
    worst, worst_offset
        (S,) float32 and int64: largest record score so far and where it was; -inf and -1 before the first.
    bundle
        (S,) uint64: which bundle wrote `hidden`; 0 none.
    hidden
        (S, H) float32: state after the last event.
    context_ms, context_tokens, context_numbers
        (S, W) int64, (S, W, F) uint64, (S, W, N) float32: times, stable token hashes and numbers (of counters their
        rates; NaN: missing) of the last W events, as a ring: event number k of the session (from 0) stands at k mod W.
    counter_value, counter_ms
        (S, C) float64 and int64: each counter's last value, and when that was.
    held
        (S,) bytes: events that wait to be put in order (features/event_order.py).
    windows
        (S,) bytes: samples of windows that are open (features/windows.py). A row that holds either is open, without any
        event too; then `first_ms` and `last_ms` are when something can become due.
    segment
        (S,) bytes: UTF-8 name of the session's segment, that of its first event (detectors/segments.py).
    profile_keys, profile_counts
        (S, P) uint64 and uint16: how often each token came (features/profiles.py).
    tag
        (S,) float32: whether the session is in a bad stretch, and how surely (detectors/tags.py); 0 not known.
    """

    events: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    applied: NDArray[np.int64]
    worst: NDArray[np.float32]
    worst_offset: NDArray[np.int64]
    bundle: NDArray[np.uint64]
    hidden: NDArray[np.float32]
    context_ms: NDArray[np.int64]
    context_tokens: NDArray[np.uint64]
    context_numbers: NDArray[np.float32]
    counter_value: NDArray[np.float64]
    counter_ms: NDArray[np.int64]
    held: NDArray[Any]
    windows: NDArray[Any]
    segment: NDArray[Any]
    profile_keys: NDArray[np.uint64]
    profile_counts: NDArray[np.uint16]
    tag: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int, shape: RowShape) -> SessionRows:
        """`count` rows without an open session."""
        rows = cls(*[np.zeros((count, *shape.dimensions(name)), DTYPES[name]) for name in COLUMNS])
        rows.worst.fill(-np.inf)
        rows.worst_offset.fill(NO_OFFSET)
        rows.applied.fill(NO_OFFSET)
        rows.held.fill(NOTHING_HELD)
        rows.windows.fill(NO_WINDOWS)
        rows.segment.fill(b"")
        return rows

    @classmethod
    def concatenate(cls, parts: Sequence[SessionRows]) -> SessionRows:
        """Copies of rows, one part after the other."""
        return cls(*[np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS])

    def __len__(self) -> int:
        return len(self.events)

    @property
    def is_open(self) -> NDArray[np.bool_]:
        """(S,) whether there is a session: one with events, or one whose first still wait."""
        return (self.events > 0) | self.holds_back

    @property
    def holds_back(self) -> NDArray[np.bool_]:
        """(S,) whether something waits."""
        return np.asarray(self.held.astype(np.bool_) | self.windows.astype(np.bool_))

    def due_ms(self, rules: SessionRules) -> NDArray[np.int64]:
        """(S,) once the watermark has passed that, an open session is over, or what waits may go."""
        due = np.where(self.events > 0, rules.over_ms(self.first_ms, self.last_ms), NEVER_MS)
        for row in np.flatnonzero(self.holds_back).tolist():
            due[row] = min(int(due[row]), self.wait_until_ms(row))
        return due

    def wait_until_ms(self, row: int) -> int:
        """Until when at most the earliest of what a row holds back waits."""
        held, windows = self.held[row], self.windows[row]
        return min(earliest_ms(held) if held else NEVER_MS, next_close_ms(windows) if windows else NEVER_MS)

    @property
    def clocks(self) -> SessionClocks:
        """The part that decides when sessions end."""
        return SessionClocks(self.events, self.first_ms, self.last_ms)

    def take(self, indices: NDArray[np.intp]) -> SessionRows:
        """Copies of some rows, in the order given."""
        return SessionRows(*[getattr(self, name)[indices] for name in COLUMNS])

    def copy(self, **changed: NDArray[Any]) -> SessionRows:
        """A copy that shares nothing, with columns that are given instead of its own."""
        return SessionRows(*[changed[name] if name in changed else getattr(self, name).copy() for name in COLUMNS])

    def put(self, indices: NDArray[np.intp], rows: SessionRows) -> None:
        """Overwrite some rows in place; for the store that owns them."""
        for name in COLUMNS:
            getattr(self, name)[indices] = getattr(rows, name)

    def recent(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float32]]:
        """The session's last events, oldest first: (k,) times, (k, F) token hashes and (k, N) numbers, k <= W."""
        width = self.context_ms.shape[1]
        last = int(self.events[row])
        order = np.arange(max(0, last - width), last) % width
        return self.context_ms[row, order], self.context_tokens[row, order], self.context_numbers[row, order]


COLUMNS = tuple(f.name for f in fields(SessionRows))
DTYPES: dict[str, str] = {
    "events": "<i8", "first_ms": "<i8", "last_ms": "<i8", "applied": "<i8", "worst": "<f4", "worst_offset": "<i8",
    "bundle": "<u8", "hidden": "<f4", "context_ms": "<i8", "context_tokens": "<u8",
    "context_numbers": "<f4", "counter_value": "<f8", "counter_ms": "<i8", "held": "O", "windows": "O", "segment": "O",
    "profile_keys": "<u8", "profile_counts": "<u2", "tag": "<f4",
}  # fmt: skip


@dataclass(frozen=True)
class RowShape:
    """What a row's width depends on.

    Hidden state, events of context, token fields, numbers, counters among these, entries of the profile.
    """

    hidden: int
    context: int
    fields: int
    numbers: int = 0
    counters: int = 0
    profile: int = 0

    def dimensions(self, column: str) -> tuple[int, ...]:
        """Shape of one row's entry in a column of `SessionRows`."""
        shapes = {
            "hidden": (self.hidden,), "context_ms": (self.context,), "context_tokens": (self.context, self.fields),
            "context_numbers": (self.context, self.numbers), "counter_value": (self.counters,),
            "counter_ms": (self.counters,), "profile_keys": (self.profile,), "profile_counts": (self.profile,),
        }  # fmt: skip
        return shapes.get(column, ())


MOST_SEGMENTS = 100  # whose decisions are counted apart; the others are counted together
OTHER_SEGMENTS = "\0"


@dataclass(frozen=True)
class Decided:
    """Decisions since a time (None: none yet), of records and of sessions, by segment ("" for none)."""

    since_ms: int | None = None
    records: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PartitionState:
    """What a partition keeps beside its sessions.

    Attributes
    ----------
    next_offset
        X + 1: the first offset not taken in.
    watermark_ms
        Largest event time seen; -1 before the first event.
    records
        How many valid records were taken in.
    recent_ids
        Ids of the last events, oldest first, 8 bytes each, little endian.
    schema
        What `detectors.schema_watch` remembers of the fields; None before the first record.
    online
        What was learned online; None before the first record and once a bundle serves.
    rescoring
        Of records and of sessions, the latest thousand of offsets in which some were looked at again, and how many
        (detectors/rescoring.py).
    explaining
        The same of records that were explained by leaving events out (detectors/occlusion.py).
    absolved
        Patterns that people have called normal, the latest last, 8 bytes each, little endian (detectors/absolution.py).
    decided
        How many decisions were taken (detectors/decided.py).
    keeper
        The thresholds that keep the promise, and what they learn from (detectors/promise_keeper.py); None where
        nothing is adapted.
    kept
        What detectors remember, by their names (detectors/kept.py).
    """

    next_offset: int
    watermark_ms: int = NO_WATERMARK
    records: int = 0
    recent_ids: bytes = b""
    schema: SchemaState | None = None
    online: OnlineState | None = None
    rescoring: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    explaining: tuple[int, int] = (0, 0)
    absolved: bytes = b""
    decided: Decided = field(default_factory=Decided)
    keeper: KeeperState | None = None
    kept: Mapping[str, Kept] = field(default_factory=dict)

    def advance(
        self, next_offset: int | None, watermark_ms: int, records: int, online: OnlineState | None,
        keeper: KeeperState | None = None,
    ) -> PartitionState:  # fmt: skip
        """The state after a slice."""
        return replace(
            self, next_offset=self.next_offset if next_offset is None else next_offset,
            watermark_ms=watermark_ms, records=self.records + records, online=online, keeper=keeper,
        )  # fmt: skip


@njit(cache=True)
def remember(
    kind, row, record, first, offsets, time_ms, hashes, measures, scores,
    counted, applied, worst, worst_offset, context_ms, context_tokens, context_numbers, profile_keys, profile_counts,
    ended_worst, ended_worst_offset, ended_applied, ended_keys, ended_counts,
):  # fmt: skip
    """Write m operations into rows, in order: context, profile, applied offset, largest score; copy what ended.

    `counted` (S,) holds each session's events before the slice and counts on. Scores that are NaN (no model yet) leave
    `worst` as it was. What an ended session had is written at its operation, its profile at the number of the end.
    """
    width, ended = context_ms.shape[1], 0
    for o in range(len(kind)):
        s = row[o]
        if kind[o] == _LATE:
            continue
        if kind[o] != _STEP:
            ended_worst[o], ended_worst_offset[o], ended_applied[o] = worst[s], worst_offset[s], applied[s]
            counted[s], worst[s], worst_offset[s], applied[s] = 0, -np.inf, NO_OFFSET, NO_OFFSET
            ended_keys[ended], ended_counts[ended] = profile_keys[s], profile_counts[s]
            profile_keys[s], profile_counts[s] = FREE, 0
            ended += 1
            continue
        i = record[o]
        if first[i]:
            counted[s], worst[s], worst_offset[s] = 0, -np.inf, NO_OFFSET
            context_ms[s], context_tokens[s], context_numbers[s] = 0, 0, 0  # nothing of an earlier session of that name
            profile_keys[s], profile_counts[s] = FREE, 0
        at = counted[s] % width
        context_ms[s, at] = time_ms[i]
        context_tokens[s, at] = hashes[i]
        context_numbers[s, at] = measures[i]
        if len(profile_keys[s]):
            for field in range(hashes.shape[1]):
                count_token(profile_keys[s], profile_counts[s], token_key(field, hashes[i, field]))
        counted[s] += 1
        applied[s] = offsets[i]
        if scores[i] > worst[s]:
            worst[s], worst_offset[s] = scores[i], offsets[i]
