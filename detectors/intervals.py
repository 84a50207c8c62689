"""Histograms of a stream, interval by interval, held against those of training. What input and score drift are told by.

An interval is at least `LEAST` records and at least a given span of event time, and ends where a block of `BLOCK`
records does. So where it ends depends on the records alone, in the order given: not on slices, restarts or a clock.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.drift_tests import at_least, binned_ks, psi

BLOCK = 256  # records between two looks at whether an interval is over
LEAST = 1_024  # records of an interval
WINDOW, AGREE, BACK = (
    8,
    6,
    2,
)  # intervals that vote; so many must differ for a drift to begin, and at most so many to end
DOUBT = 0.05  # chance that training's own intervals would vote so, above which nothing is told: it was too short
GROUPS = 5  # of sessions: all but one of them must differ
BINS = 15  # of values that training knew; one more is for those that it did not
HOURS = 24
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
STATISTICS = ("psi", "ks", "unknown", "surprise")
KINDS = ("distribution", "unknown", "surprise")  # what a drift is of; the first two statistics tell of one thing
_KIND = np.array([0, 0, 1, 2])
_FLOORS = np.array([0.1, 0.1, 0.05, 0.25])  # what a statistic must rise by to concern anybody
_IN_DOUBT = 2.5  # times that, where training had too few intervals to say what is usual
_LEAST_GROUP, _LEAST_GROUPS = 64, 3
LEAST_HOUR = 256  # training records of an hour of the day, on two days, for it to have a histogram of its own
_SHRINK = 64.0  # records of the whole day that count towards each hour's
_EVEN = 0.5  # of a record in each bin, so that none is impossible
_HEADER = struct.Struct("<IHHqqqq")

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
NEVER = -1


@dataclass(frozen=True, eq=False)
class Binned:
    """n records as they are counted: (n, C) uint8 bins, (n,) groups of their sessions, times and offsets.

    A bin is below `BINS`, or `BINS` itself for a value that training never met.
    """

    bins: NDArray[np.uint8]
    group: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.time_ms)


@dataclass(frozen=True, eq=False)
class Tally:
    """An interval under way.

    Attributes
    ----------
    counts
        (C, GROUPS, BINS + 1) records of each column by group and bin.
    hours
        (24,) records by hour of the day.
    seen
        Records so far.
    first_ms
        Time of the first; -1 before it.
    block_ms, elapsed_ms
        Time of the first record of the latest block, and how far these have gone forward in all.
    """

    counts: Counts
    hours: Counts
    seen: int = 0
    first_ms: int = NEVER
    block_ms: int = NEVER
    elapsed_ms: int = 0

    @classmethod
    def empty(cls, columns: int) -> Tally:
        """Before the first record."""
        return cls(np.zeros((columns, GROUPS, BINS + 1), np.int64), np.zeros(HOURS, np.int64))

    def closes(self, span_ms: int) -> bool:
        """Whether the interval is over."""
        return self.seen >= LEAST and self.seen % BLOCK == 0 and self.elapsed_ms >= span_ms

    def update_many(self, records: Binned, low: int, span_ms: int) -> tuple[Tally, int]:
        """The tally with records from `low` on, up to the end of their block or of the records, and where that is.

        What a block is ahead of the one before it counts up to `span_ms` only: one record with a time far ahead does
        not end an interval by itself more than once. A clock that is set back costs the interval nothing.
        """
        high = min(len(records), low + BLOCK - self.seen % BLOCK)
        first_ms, block_ms, elapsed_ms = self.first_ms, self.block_ms, self.elapsed_ms
        now_ms = int(records.time_ms[low])
        if self.seen == 0:
            first_ms = block_ms = now_ms
        elif self.seen % BLOCK == 0:
            elapsed_ms += min(max(0, now_ms - block_ms), span_ms)
            block_ms = now_ms
        columns = self.counts.shape[0]
        at = (np.arange(columns) * GROUPS + records.group[low:high, None]) * (BINS + 1) + records.bins[low:high]
        counts = self.counts + np.bincount(at.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        hours = self.hours + np.bincount(hours_of(records.time_ms[low:high]), minlength=HOURS)
        return Tally(counts, hours, self.seen + high - low, first_ms, block_ms, elapsed_ms), high


def hours_of(time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) hours of the day, UTC."""
    return time_ms // HOUR_MS % HOURS


@dataclass(frozen=True, eq=False)
class Reference:
    """What training had, to hold intervals against.

    Attributes
    ----------
    counts
        (C, BINS) records by bin.
    hours
        (24, C, BINS) the same by hour of the day, all zero for hours without a histogram of their own; None where no
        hour has one.
    unknown
        (C,) share of unknown values.
    worth
        (C, BINS) mean surprise of what is in a bin, in nats; 0 where a column is no surprise.
    usual
        (C, 4) of each statistic the highest level that six of eight intervals in a row reached.
    share
        (C, 4) of training's intervals, those beyond the limits, one more counted among them.
    intervals
        How many there were.
    span_ms
        Least event time of a live interval.
    """

    counts: Floats
    hours: Floats | None
    unknown: Floats
    worth: Floats
    usual: Floats
    share: Floats
    intervals: int
    span_ms: int

    @classmethod
    def empty(cls, columns: int) -> Reference:
        """Of no training."""
        bins, four = np.zeros((columns, BINS)), np.zeros((columns, len(STATISTICS)))
        return cls(bins, None, np.zeros(columns), bins, four, four, 0, 1)

    @cached_property
    def limits(self) -> Floats:
        """(C, 4) from where on an interval differs."""
        floors = _FLOORS * (_IN_DOUBT if self.intervals < WINDOW else 1.0)
        return np.maximum(2.0 * self.usual, self.usual + floors)

    def expected(self, hours: Counts) -> Floats:
        """(C, BINS) shares that training would have had at such (24,) numbers of records in each hour of the day."""
        whole = _shares(self.counts)
        if self.hours is None:
            return whole
        n = self.hours.sum(axis=2, keepdims=True)
        of_hours = np.where(n > 0, (self.hours + _SHRINK * whole) / (n + _SHRINK), whole)
        mixed: Floats = np.einsum("h,hck->ck", hours / max(1, hours.sum()), of_hours)
        return mixed

    def levels_of(self, state: IntervalState) -> Floats:
        """(C, 3) of the latest interval and each kind the statistic that is furthest, as a share of its limit."""
        shares = state.levels[-1] / self.limits
        return np.stack([shares[:, kind == _KIND].max(axis=1) for kind in range(len(KINDS))], axis=1)

    @cached_property
    def mark(self) -> int:
        """Names it, so that a state knows which it was held against."""
        return zlib.crc32(repr(self.to_json()).encode())

    def to_json(self) -> dict[str, Any]:
        """As a bundle holds it."""
        return {
            "counts": self.counts.tolist(), "hours": None if self.hours is None else self.hours.tolist(),
            "unknown": self.unknown.tolist(), "worth": self.worth.tolist(), "usual": self.usual.tolist(),
            "share": self.share.tolist(), "intervals": self.intervals, "span_ms": self.span_ms,
        }  # fmt: skip

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Reference:
        """What `to_json` gave. KeyError, ValueError: it is none."""
        arrays = {name: np.array(saved[name], np.float64) for name in ("counts", "unknown", "worth", "usual", "share")}
        hours = None if saved["hours"] is None else np.array(saved["hours"], np.float64)
        return cls(hours=hours, intervals=int(saved["intervals"]), span_ms=int(saved["span_ms"]), **arrays)


def _shares(counts: Floats) -> Floats:
    """(..., K) shares of (..., K) counts, none of them 0."""
    shares: Floats = (counts + _EVEN) / (counts.sum(axis=-1, keepdims=True) + _EVEN * counts.shape[-1])
    return shares


def statistics(tally: Tally, expected: Floats, unknown: Floats, worth: Floats) -> Floats:
    """(C, 4) how far an interval is from what was expected, in the order of `STATISTICS`.

    Sessions stand in `GROUPS` groups, and the second smallest of the groups' statistics counts: so one, two or three
    sessions that are unlike all others do not move it, however many records they have. Where fewer than three groups
    have records enough, there are few sessions anyway, and all records are one group.
    """
    enough = tally.counts[0].sum(axis=1) >= _LEAST_GROUP if len(tally.counts) else np.zeros(GROUPS, np.bool_)
    several = int(enough.sum()) >= _LEAST_GROUPS
    counts = tally.counts[:, enough] if several else tally.counts.sum(axis=1, keepdims=True)
    known, n = counts[..., :BINS], np.maximum(1, counts.sum(axis=2))
    q = expected[:, None, :]
    shares = known / np.maximum(1, known.sum(axis=2, keepdims=True))
    moved = np.abs(((shares - q) * worth[:, None, :]).sum(axis=2)) - 0.8 / np.sqrt(n) * (worth.max(axis=1) > 0)[:, None]
    found = np.stack([
        psi(known, np.broadcast_to(q, known.shape)), binned_ks(known, np.broadcast_to(q, known.shape)),
        np.maximum(0.0, counts[..., BINS] / n - unknown[:, None]),
        np.maximum(0.0, moved),
    ], axis=2)  # fmt: skip
    ordered: Floats = np.sort(found, axis=1)[:, int(several)]
    return ordered


@dataclass(frozen=True, eq=False)
class IntervalState:
    """What a partition remembers: C columns, of which it takes about 1 KB each before it is packed.

    Attributes
    ----------
    tally
        The interval under way.
    levels
        (w, C, 4) statistics of the last intervals, eight at most.
    began_ms, sizes
        (w,) times of their first records, and how many they had.
    mark
        Of the reference they were held against.
    since_ms, records
        (C, 3) of drifts that have begun and not ended since when, and in how many records; -1 of the others.
    """

    tally: Tally
    levels: NDArray[np.float32]
    began_ms: NDArray[np.int64]
    sizes: Counts
    mark: int
    since_ms: NDArray[np.int64]
    records: NDArray[np.int64]

    def under(self, mark: int) -> IntervalState:
        """Begun anew under another reference; what had begun under this one may end under that."""
        columns = len(self.records)
        return replace(IntervalState.empty(columns, mark), since_ms=self.since_ms, records=self.records)

    @classmethod
    def empty(cls, columns: int, mark: int) -> IntervalState:
        """Before the first record."""
        never = np.full((columns, len(KINDS)), NEVER, np.int64)
        levels = np.empty((0, columns, len(STATISTICS)), np.float32)
        nothing = np.empty(0, np.int64)
        return cls(Tally.empty(columns), levels, nothing, nothing, mark, never, never)

    def is_later_than(self, before: IntervalState | None) -> bool:
        """Whether an interval has ended since."""
        return len(self.levels) > 0 and (before is None or before.levels is not self.levels)

    def pack(self) -> bytes:
        """As it is saved; mostly small counts, so it is compressed."""
        t, (w, columns, _) = self.tally, self.levels.shape
        header = _HEADER.pack(self.mark, columns, w, t.seen, t.first_ms, t.block_ms, t.elapsed_ms)
        arrays = (t.counts, t.hours, self.began_ms, self.sizes, self.since_ms, self.records, self.levels)
        return zlib.compress(header + b"".join(array.tobytes() for array in arrays), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> IntervalState:
        """What `pack` gave. ValueError: it is none."""
        try:
            raw = zlib.decompress(packed)
            mark, columns, w, seen, first_ms, block_ms, elapsed_ms = _HEADER.unpack_from(raw)
        except (zlib.error, struct.error) as error:
            message = f"it cannot be unpacked: {error}"
            raise ValueError(message) from None
        at, found = _HEADER.size, []
        kinds = (columns, len(KINDS))
        for shape in ((columns, GROUPS, BINS + 1), (HOURS,), (w,), (w,), kinds, kinds):
            size = int(np.prod(shape))
            found.append(np.frombuffer(raw, np.int64, size, at).reshape(shape))
            at += 8 * size
        levels = np.frombuffer(raw, np.float32, -1, at).reshape(w, columns, len(STATISTICS))
        counts, hours, began_ms, sizes, since_ms, records = found
        tally = Tally(counts, hours, seen, first_ms, block_ms, elapsed_ms)
        return cls(tally, levels, began_ms, sizes, mark, since_ms, records)


@dataclass(frozen=True)
class Change:
    """A column began to differ, or no longer does; as `detectors.drift_events.DriftEvent`, of a column by number."""

    column: int
    kind: int
    has_begun: bool
    offset: int
    since_ms: int
    records: int
    statistic: str
    amount: float
    usual: float
    limit: float
    p_value: float


@dataclass(frozen=True, eq=False)
class IntervalWatch:
    """Counts records and judges each interval.

    A column differs in an interval where one of its statistics is beyond its limit: twice the highest level that
    training itself reached, for as long as it takes to begin a drift, and a floor above it. A drift begins once six of
    the last eight intervals differ, and ends once two or fewer do. So it lasts six intervals at least; an incident that
    is over within four never begins one, for it touches five. What training did too, day by day, is no drift.

    It fails where training is short: of fewer than some 5,000 records no drift is ever told; of hours that it has not
    seen it cannot know what is usual there; of weekends it knows nothing before it has had one.
    """

    reference: Reference

    def update_many(self, state: IntervalState | None, records: Binned) -> tuple[IntervalState, list[Change]]:
        """Count records in their order, and judge each interval that they end."""
        reference, columns = self.reference, len(self.reference.counts)
        if state is None or state.records.shape[0] != columns:
            state = IntervalState.empty(columns, reference.mark)
        elif state.mark != reference.mark:  # another bundle
            state = state.under(reference.mark)
        changes, at, tally = list[Change](), 0, state.tally
        while at < len(records):
            tally, at = tally.update_many(records, at, reference.span_ms)
            if tally.closes(reference.span_ms):
                state, found = self._judge(state, tally, int(records.offsets[at - 1]))
                changes += found
                tally = Tally.empty(columns)
        return replace(state, tally=tally), changes

    def _judge(self, state: IntervalState, tally: Tally, offset: int) -> tuple[IntervalState, list[Change]]:
        reference = self.reference
        level = statistics(tally, reference.expected(tally.hours), reference.unknown, reference.worth)
        levels = np.concatenate([state.levels, level[None].astype(np.float32)])[-WINDOW:]
        began_ms = np.append(state.began_ms, tally.first_ms)[-WINDOW:]
        sizes = np.append(state.sizes, tally.seen)[-WINDOW:]
        differs = of_kinds(levels > reference.limits)
        votes = differs.sum(axis=0)
        is_open = state.records != NEVER
        begins = ~is_open & (votes >= AGREE) & (self._chances[votes, *np.indices(votes.shape)] <= DOUBT)
        ends = is_open & (votes <= BACK) & (len(levels) == WINDOW)
        since_ms, records = state.since_ms.copy(), np.where(is_open, state.records + tally.seen, state.records)
        first = differs.argmax(axis=0)
        since_ms[begins] = began_ms[first][begins]
        records[begins] = np.cumsum(sizes[::-1])[::-1][first][begins]
        judged = replace(state, levels=levels, began_ms=began_ms, sizes=sizes, since_ms=since_ms, records=records)
        changes = [
            self.change(judged, int(c), int(k), offset, has_begun=bool(begins[c, k]))
            for c, k in np.argwhere(begins | ends)
        ]
        return replace(
            judged, since_ms=np.where(ends, NEVER, since_ms), records=np.where(ends, NEVER, records)
        ), changes  # fmt: skip

    @cached_property
    def _chances(self) -> Floats:
        """(9, C, 3) how often so many of eight intervals would differ by chance, in any of all columns and kinds."""
        shares = np.stack([self.reference.share[:, k == _KIND].max(axis=1) for k in range(len(KINDS))], axis=1)
        of = {share: [at_least(k, WINDOW, share) for k in range(WINDOW + 1)] for share in set(shares.ravel().tolist())}
        chances: Floats = np.array([of[share] for share in shares.ravel().tolist()]).reshape(*shares.shape, WINDOW + 1)
        total: Floats = np.minimum(1.0, np.moveaxis(chances, -1, 0) * shares.size)
        return total

    def change(self, state: IntervalState, column: int, kind: int, offset: int, *, has_begun: bool = True) -> Change:
        """What to say of a drift that is open: by the statistic of its kind that is furthest beyond its limit."""
        reference, own = self.reference, np.flatnonzero(kind == _KIND)
        levels = state.levels[:, column, own]
        middle = np.median(levels, axis=0)
        furthest = int(np.argmax(middle / reference.limits[column, own]))
        statistic = own[furthest]
        votes = int((levels > reference.limits[column, own]).any(axis=1).sum())
        return Change(
            column, kind, has_begun, offset, int(state.since_ms[column, kind]), int(state.records[column, kind]),
            STATISTICS[statistic], float(middle[furthest]), float(reference.usual[column, statistic]),
            float(reference.limits[column, statistic]), float(self._chances[votes, column, kind]),
        )  # fmt: skip


def of_kinds(beyond: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(..., C, 3) whether any statistic of a kind is beyond its limit, of (..., C, 4)."""
    return np.stack([beyond[..., kind == _KIND].any(axis=-1) for kind in range(len(KINDS))], axis=-1)
