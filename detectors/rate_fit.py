"""What a training leaves for telling rates: counted as workers count, spread until its own alarms keep the promise."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detectors.rate_kernels import Floats
from detectors.rate_watch import Ints, RateWatch
from detectors.teaching import Taught
from detectors.usual_rates import (
    DAY_MS,
    HOUR_MS,
    HOURS,
    LEAST_BUCKETS,
    MOST_SEGMENTS,
    UsualRates,
    bucket_of,
    fit_dispersion,
)
from features.events import Events

_WIDER, _TRIES = 1.25, 40  # steps of the spread
_LEAST_SPREAD = 0.001


def usual_rates(taught: Taught) -> dict[str, bytes]:
    """The file that says it; none where the history is too short."""
    parts = taught.parts
    usual = learn_rates([p.arrived for p in taught.history.partitions], parts.rules.reorder_ms, parts.rate)
    return {} if usual is None else {"rates.json": json.dumps(usual.to_json(), ensure_ascii=False).encode()}


def learn_rates(partitions: Sequence[Events], reorder_ms: int, rate: float) -> UsualRates | None:
    """From the events of each partition, as they arrived; None where these are too few buckets.

    Rates are of a partition on average; how partitions differ belongs to the spread. That is what counts vary around
    what is expected of them, and more where with it more of training's own counts would be alarms than promised.
    """
    partitions = [p for p in partitions if len(p)]
    found = Counter(name for p in partitions for name in (p.segments or [None] * len(p)))
    names = tuple(name for name, _ in sorted(found.items(), key=lambda n: (-n[1], n[0] or ""))[:MOST_SEGMENTS])
    spans = [int(p.time_ms.max() - p.time_ms.min()) for p in partitions]
    if not spans:
        return None
    width = bucket_of(sum(found[name] for name in names), len(names), sum(spans))
    nothing, none = np.zeros((len(names), HOURS), np.int64), np.zeros(len(names))
    usual = UsualRates(width, names, nothing, np.zeros(HOURS, np.int64), none, max(spans) >= 2 * DAY_MS)
    counted = [_counts(RateWatch(usual, rate, reorder_ms), p) for p in partitions]
    counted = [(begins, counts) for begins, counts in counted if len(begins)]
    if sum(len(begins) for begins, _ in counted) < LEAST_BUCKETS:
        return None
    usual = _with_hours(usual, counted)
    expected = [np.array([np.mean(usual.at(b)[:2], axis=0) for b in begins.tolist()]) for begins, _ in counted]
    usual = replace(usual, dispersion=fit_dispersion([c.astype(np.float64) for _, c in counted], expected))
    return _widened(usual, counted, rate)


def _counts(watch: RateWatch, events: Events) -> tuple[Ints, Ints]:
    """(n,) where the whole buckets of a partition begin, and (n, S) what came in each before it was judged."""
    width = watch.usual.bucket_ms
    newest = np.maximum.accumulate(events.time_ms)
    first = (int(events.time_ms[0]) // width + 1) * width
    buckets = max(0, (int(newest[-1]) // width * width - first) // width)
    at = (events.time_ms - first) // width
    number_of = watch.usual.number_of
    numbers = np.array([number_of.get(name, -1) for name in events.segments or [None] * len(events)], np.int64)
    kept = (events.time_ms >= watch.open_from(newest)) & (at >= 0) & (at < buckets) & (numbers >= 0)
    counts = np.zeros((buckets, len(number_of)), np.int64)
    np.add.at(counts, (at[kept], numbers[kept]), 1)
    return first + width * np.arange(buckets, dtype=np.int64), counts


def _with_hours(usual: UsualRates, counted: Sequence[tuple[Ints, Ints]]) -> UsualRates:
    counts, buckets = np.zeros((HOURS, len(usual.segments)), np.int64), np.zeros(HOURS, np.int64)
    for begins, of_buckets in counted:
        hours = (begins + usual.bucket_ms // 2) % DAY_MS // HOUR_MS
        np.add.at(counts, hours, of_buckets)
        buckets += np.bincount(hours, minlength=HOURS)
    return replace(usual, counts=counts.T, buckets=buckets, by_hour=usual.by_hour and bool((buckets > 0).all()))


def _widened(usual: UsualRates, counted: Sequence[tuple[Ints, Ints]], rate: float) -> UsualRates:
    """With a spread under which training's own alarms are no more than were due, give or take what chance does."""
    due = rate * sum(counts.size for _, counts in counted)
    for _ in range(_TRIES):
        if _alarms(usual, counted, rate) <= due + 2 * math.sqrt(due) + 1:
            break
        wider: Floats = np.maximum(usual.dispersion, _LEAST_SPREAD) * _WIDER
        usual = replace(usual, dispersion=wider)
    return usual


def _alarms(usual: UsualRates, counted: Sequence[tuple[Ints, Ints]], rate: float) -> int:
    watch, alarms = RateWatch(usual, rate), 0
    for begins, counts in counted:
        levels = np.ones(len(usual.segments))
        for begin, of_bucket in zip(begins.tolist(), counts, strict=True):
            p_values, _, levels = watch.judge(begin, of_bucket, levels)
            alarms += int((p_values <= rate).sum())
    return alarms
