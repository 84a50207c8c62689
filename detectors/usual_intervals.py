"""What is usual, interval by interval: the reference that a training leaves for `detectors.intervals`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.intervals import (
    AGREE,
    BINS,
    DAY_MS,
    HOUR_MS,
    HOURS,
    LEAST_HOUR,
    STATISTICS,
    WINDOW,
    Binned,
    Floats,
    Reference,
    Tally,
    hours_of,
    statistics,
)

# How long a change must last, by event time, to be a drift: incidents last for hours. Where training saw less than a
# day, nobody knows the night, so a change must outlast it.
AFTER_MS, AFTER_UNKNOWN_MS = 4 * HOUR_MS, DAY_MS
_UNKNOWN = STATISTICS.index("unknown")


class _Interval(NamedTuple):
    tally: Tally
    day: int


def learn(
    parts: Sequence[Binned], new: Sequence[NDArray[np.bool_]], worth: Floats, after_ms: int | None = None
) -> Reference:
    """What training had.

    Parameters
    ----------
    parts
        Of each partition its records, in their order.
    new
        Of each partition (n,) which of its records taught nothing: unknown values are counted among these, since the
        others' are all known.
    worth
        (C, BINS) as `Reference` has it.
    after_ms
        How long a change must last; None: four hours, or a day where training saw less than each hour of one.

    Notes
    -----
    Each interval of the training is held against all but its own day, or where there is only one day, against all but
    itself. So what is usual is what a day looks like from outside. The intervals are shorter than live ones where there
    would not be eight of them twice.
    """
    columns = len(worth)
    days, by_day = _by_day(parts, columns)
    whole = by_day.sum(axis=0)
    of_hour = whole[:, 0].sum(axis=1)  # each column counts each record
    spans = [int(part.time_ms.max() - part.time_ms.min()) for part in parts if len(part)]
    knows_the_day = bool((of_hour > 0).all()) and max(spans, default=0) >= DAY_MS
    if after_ms is None:
        after_ms = AFTER_MS if knows_the_day else AFTER_UNKNOWN_MS
    span_ms = max(1, after_ms // AGREE)
    several_days = (by_day[:, :, 0].sum(axis=2) > 0).sum(axis=0) >= 2
    has_own = several_days & (of_hour >= LEAST_HOUR)
    unknown = sum((part.bins[of_new] == BINS).sum(axis=0) for part, of_new in zip(parts, new, strict=True))
    unknown = np.broadcast_to(unknown / max(1, sum(int(of_new.sum()) for of_new in new)), (columns,)).astype(np.float64)
    hours = (whole * has_own[:, None, None])[..., :BINS] if has_own.any() else None
    zeros = np.zeros((columns, len(STATISTICS)))
    reference = Reference(whole.sum(axis=0)[..., :BINS], hours, unknown, worth, zeros, zeros, 0, span_ms)

    def levels_of(of_part: Binned) -> Floats:
        found = []
        for interval in _intervals(of_part, span_ms, columns):
            others = _without(reference, interval, days, by_day)
            expected = others.expected(interval.tally.hours)
            found.append(statistics(interval.tally, expected, unknown, worth))
        return np.array(found).reshape(-1, columns, len(STATISTICS))

    levels = [levels_of(part) for part in parts]
    for of_part, part, of_new in zip(levels, parts, new, strict=True):
        of_part[..., _UNKNOWN] = 0.0
        if of_new.any():  # usually fewer intervals, so they stand for the last
            untaught = levels_of(_taken(part, of_new))[-len(of_part) :]
            of_part[len(of_part) - len(untaught) :, :, _UNKNOWN] = untaught[..., _UNKNOWN]
    count = sum(map(len, levels))
    usual = np.max([_usual(of_part) for of_part in levels if len(of_part)], axis=0) if count else zeros
    reference = replace(reference, usual=usual, intervals=count)
    beyond = sum(((of_part > reference.limits).sum(axis=0) for of_part in levels), start=np.zeros_like(zeros))
    return replace(reference, share=(1.0 + beyond) / (1.0 + count))


def _taken(part: Binned, chosen: NDArray[np.bool_]) -> Binned:
    return Binned(part.bins[chosen], part.group[chosen], part.time_ms[chosen], part.offsets[chosen])


def _by_day(parts: Sequence[Binned], columns: int) -> tuple[NDArray[np.int64], Floats]:
    """(D,) days with records, and (D, 24, C, BINS + 1) records by day, hour, column and bin."""
    every = np.concatenate([part.time_ms for part in parts]) if parts else np.empty(0, np.int64)
    days = np.unique(every // DAY_MS)
    found = np.zeros((len(days), HOURS, columns, BINS + 1))
    for part in parts:
        day, hour = np.searchsorted(days, part.time_ms // DAY_MS), hours_of(part.time_ms)
        for column in range(columns):
            at = (day * HOURS + hour) * (BINS + 1) + part.bins[:, column]
            counted = np.bincount(at, minlength=len(days) * HOURS * (BINS + 1))
            found[:, :, column] += counted.reshape(len(days), HOURS, BINS + 1)
    return days, found


def _intervals(part: Binned, span_ms: int, columns: int) -> Iterator[_Interval]:
    """The intervals of a partition; of a short one those that its records allow."""
    if not len(part):
        return
    whole_ms = int(part.time_ms.max() - part.time_ms.min())
    span_ms = min(span_ms, whole_ms // (2 * WINDOW))
    tally, at = Tally.empty(columns), 0
    while at < len(part):
        tally, at = tally.update_many(part, at, span_ms)
        if tally.closes(span_ms):
            yield _Interval(tally, tally.first_ms // DAY_MS)
            tally = Tally.empty(columns)


def _without(reference: Reference, interval: _Interval, days: NDArray[np.int64], by_day: Floats) -> Reference:
    """The reference less the interval's day, or of a single day less the interval."""
    if len(days) == 1:
        return replace(reference, counts=reference.counts - interval.tally.counts.sum(axis=1)[:, :BINS], hours=None)
    own = by_day[np.searchsorted(days, interval.day)][..., :BINS]
    counts = reference.counts - own.sum(axis=0)
    if reference.hours is None:
        return replace(reference, counts=counts)
    has_own = reference.hours[:, 0].sum(axis=1) > 0
    return replace(reference, counts=counts, hours=reference.hours - own * has_own[:, None, None])


def _usual(levels: Floats) -> Floats:
    """(C, 4) the highest level that six of any eight intervals in a row reached, of (n, C, 4); of few the highest."""
    if len(levels) < WINDOW:
        highest: Floats = levels.max(axis=0)
        return highest
    windows = np.lib.stride_tricks.sliding_window_view(levels, WINDOW, axis=0)
    reached: Floats = np.sort(windows, axis=-1)[..., -AGREE].max(axis=0)
    return reached
