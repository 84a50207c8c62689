"""Too many records, too few, or none: counts by segment and bucket of event time, against what training had then.

A bucket is judged once the watermark has passed its end by `late` and one bucket more, in the order of records; so
however a stream is cut, the same is said. Empty buckets count too. What is expected follows the stream by a slow level
for each segment, between half and twice what training had; an alarm teaches it no more than what would have been none.

Works where training saw each hour of two days, and a partition's share of the stream stays. Fails, with alarms until
the next training, where either changes: a weekend that training did not see, another number of partitions.

References
----------
Negative binomial counts against a seasonal mean, with the dispersion of the past: Farrington et al. 1996, "A
statistical algorithm for the early detection of outbreaks of infectious disease", JRSS A 159; Noufaily et al. 2013,
"An improved algorithm for outbreak detection in multiple surveillance systems", Statistics in Medicine 32. We leave out
their trend and put the level in its place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detectors.rate_kernels import TOO_MANY, Floats, judge, largest, smallest
from detectors.usual_rates import UsualRates

NAME = "rate"
MOST_AT_ONCE = 1_000  # empty buckets judged of one silence; a longer one is as well known by then
IDLE_BUCKETS = 5  # by which the idle clock moves at most: three empty ones are seen
LEAST_LEVEL, MOST_LEVEL = 0.5, 2.0
_MOST_LATE = 60  # buckets: so many are open at once, and a state stays small
_LEAST_DAILY = 100.0  # records: of fewer, one alone would move a level by more than a hundredth
_VERSION = 1
_HEADER = struct.Struct("<BQqqqII")
Direction = Literal["too_many", "too_few"]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RateState:
    """What a partition remembers: less than 66 KB.

    Attributes
    ----------
    bundle
        The bundle's number: to another one other rates are usual.
    next_ms
        Where the earliest bucket that is not judged yet begins.
    since_ms, judged
        Event time from which buckets were judged, and how many.
    counts
        (K, S) int64: records in it and in the K - 1 buckets after it.
    levels
        (S,) float64: what is expected, by what training had.
    """

    bundle: int
    next_ms: int
    since_ms: int
    judged: int
    counts: Ints
    levels: Floats

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateState) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())

    def pack(self) -> bytes:
        """The numbers in order, little endian: 64 KB at most but for a header."""
        head = _HEADER.pack(_VERSION, self.bundle, self.next_ms, self.since_ms, self.judged, *self.counts.shape)
        return head + self.levels.astype("<f8").tobytes() + np.minimum(self.counts, 2**32 - 1).astype("<u4").tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> RateState | None:
        """What `pack` gave; None of another version. ValueError: it is none."""
        if len(packed) < _HEADER.size:
            message = "it cannot be unpacked: it is too short"
            raise ValueError(message)
        version, bundle, next_ms, since_ms, judged, buckets, segments = _HEADER.unpack_from(packed)
        if version != _VERSION:
            return None
        levels = np.frombuffer(packed, "<f8", segments, _HEADER.size).astype(np.float64)
        counts = np.frombuffer(packed, "<u4", -1, _HEADER.size + 8 * segments).astype(np.int64)
        return cls(bundle, next_ms, since_ms, judged, counts.reshape(buckets, segments), levels)


@dataclass(frozen=True)
class RateAlarm:
    """A bucket with too many records of a segment, or too few.

    Attributes
    ----------
    from_ms, until_ms
        The bucket, its end left out.
    low, median, high
        Counts: from low to high there would be no alarm.
    offset
        Of the record whose time showed that the bucket was over, or of the last before the idle clock did.
    judged, since_ms
        How many-th bucket it is that was judged, and since when.
    """

    segment: str | None
    from_ms: int
    until_ms: int
    count: int
    low: int
    median: int
    high: int
    direction: Direction
    p_value: float
    offset: int
    judged: int
    since_ms: int


@dataclass(frozen=True)
class Rated:
    """What one slice gave: how many counts of a segment were judged, and those that are anomalies."""

    judged: int = 0
    alarms: tuple[RateAlarm, ...] = ()


@dataclass(frozen=True)
class RateWatch:
    """Judges a partition's counts.

    Attributes
    ----------
    usual
        What training had.
    rate
        The share of normal counts that may be alarmed.
    reorder_ms
        By how much records may come behind the newest.
    """

    usual: UsualRates
    rate: float
    reorder_ms: int = 0

    @property
    def late_ms(self) -> int:
        """How long a bucket waits for its last records, beside one bucket."""
        return min(self.reorder_ms, _MOST_LATE * self.usual.bucket_ms)

    def idle_ms(self, quiet_ms: int) -> int:
        """How far the idle clock moves the watermark: by the buckets that have passed, until a few were judged.

        More would outrun the records of a topic whose event time is not now.
        """
        width = self.usual.bucket_ms
        return min(quiet_ms // width * width, self.late_ms + IDLE_BUCKETS * width)

    def open_from(self, watermark_ms: Ints) -> Ints:
        """Where the earliest bucket that is still open begins, by watermark."""
        width = self.usual.bucket_ms
        begins: Ints = ((watermark_ms - self.late_ms) // width - 1) * width
        return begins

    def update_many(
        self, state: RateState | None, bundle: int, watermark_ms: int, time_ms: Ints,
        segments: Sequence[str | None] | None, offsets: Ints, last_offset: int,
    ) -> tuple[RateState | None, Rated]:  # fmt: skip
        """Count a slice, and judge what it shows to be over.

        Parameters
        ----------
        state
            None before the first record.
        watermark_ms
            Before the slice.
        time_ms, segments, offsets
            (n,) records as they came, without those that came twice.
        last_offset
            The last one before the slice.
        """
        if state is None or state.bundle != bundle:
            if not len(time_ms):
                return state, Rated()
            state = self._begin(bundle, max(watermark_ms, int(time_ms[0])))
        newest = np.maximum.accumulate(np.concatenate([np.array([watermark_ms], np.int64), time_ms]))
        begins = self.open_from(newest)
        step = _Step(self, state)
        step.close_until(int(begins[0]), last_offset)
        if not len(time_ms) and not step.decisions:
            return state, Rated()
        numbers = self._numbers(segments, len(time_ms))
        turns = [0, *(np.flatnonzero(begins[2:] > begins[1:-1]) + 1).tolist(), len(time_ms)]
        for low, high in pairwise(turns):
            if low < high:
                step.close_until(int(begins[low + 1]), int(offsets[low]))
                step.count(time_ms[low:high], numbers[low:high])
        return step.state, Rated(step.decisions, tuple(step.alarms))

    def _begin(self, bundle: int, newest_ms: int) -> RateState:
        """The bucket that is under way was not seen from its beginning."""
        width, segments = self.usual.bucket_ms, len(self.usual.segments)
        next_ms = (newest_ms // width + 1) * width
        counts = np.zeros((self.late_ms // width + 4, segments), np.int64)
        return RateState(bundle, next_ms, next_ms, 0, counts, np.ones(segments))

    def _numbers(self, segments: Sequence[str | None] | None, records: int) -> Ints:
        """(n,) positions of records' segments; -1 where training had none such, or too few of it."""
        if segments is None:
            return np.full(records, self.usual.number_of.get(None, -1), np.int64)
        return np.array([self.usual.number_of.get(name, -1) for name in segments], np.int64)

    def judge(self, from_ms: int, counts: Ints, levels: Floats) -> tuple[Floats, Ints, Floats]:
        """(S,) p-values of a bucket's counts, directions, and the levels after."""
        low, high, spread = self.usual.at(from_ms)
        p_values, directions = np.empty(len(counts)), np.empty(len(counts), np.int64)
        judge(counts, low * levels, high * levels, spread, p_values, directions)
        learned = counts.astype(np.float64)
        for s in np.flatnonzero(p_values <= self.rate).tolist():
            at = levels[s] * high[s] if directions[s] == TOO_MANY else levels[s] * low[s]
            bound = largest if directions[s] == TOO_MANY else smallest
            learned[s] = bound(self.rate / 2, at, spread[s])
        missed = learned - levels * (low + high) / 2
        after = levels + missed / np.maximum(self.usual.daily, _LEAST_DAILY)  # a day is what it remembers
        return p_values, directions, np.clip(after, LEAST_LEVEL, MOST_LEVEL)


class _Step:
    """One slice on its way."""

    def __init__(self, watch: RateWatch, state: RateState) -> None:
        self.state = replace(state, counts=state.counts.copy())
        self.alarms: list[RateAlarm] = []
        self.decisions = 0
        self._watch = watch

    def count(self, time_ms: Ints, numbers: Ints) -> None:
        """Records whose bucket is open."""
        state, usual = self.state, self._watch.usual
        at = (time_ms - state.next_ms) // usual.bucket_ms
        counted = (at >= 0) & (numbers >= 0)
        np.add.at(state.counts, (at[counted], numbers[counted]), 1)

    def close_until(self, begins_ms: int, offset: int) -> None:
        """Judge the buckets before; of a long silence the first, and begin anew after it."""
        width, judged = self._watch.usual.bucket_ms, 0
        while self.state.next_ms < begins_ms:
            if judged == MOST_AT_ONCE:
                self.state = replace(self.state, next_ms=begins_ms)
                return
            self._close(width, offset)
            judged += 1

    def _close(self, width: int, offset: int) -> None:
        state, watch = self.state, self._watch
        counts = state.counts[0].copy()
        p_values, directions, levels = watch.judge(state.next_ms, counts, state.levels)
        state.counts[:-1] = state.counts[1:]
        state.counts[-1] = 0
        self.decisions += len(counts)
        after = replace(state, next_ms=state.next_ms + width, judged=state.judged + 1, levels=levels)
        for s in np.flatnonzero(p_values <= watch.rate).tolist():
            low, high, spread = (float(of[s]) for of in watch.usual.at(state.next_ms))
            low, high, half = low * float(state.levels[s]), high * float(state.levels[s]), watch.rate / 2
            self.alarms.append(
                RateAlarm(
                    watch.usual.segments[s], state.next_ms, after.next_ms, int(counts[s]),
                    int(smallest(half, low, spread)), int(smallest(0.5, (low + high) / 2, spread)),
                    int(largest(half, high, spread)),
                    "too_many" if directions[s] == TOO_MANY else "too_few", float(p_values[s]), offset,
                    after.judged, state.since_ms,
                )
            )  # fmt: skip
        self.state = after
