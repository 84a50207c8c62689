"""Rates: what is too many and too few, when that is said, and that nothing depends on slices."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.kept import MAX_BYTES, READERS
from detectors.rate_fit import learn_rates
from detectors.rate_kernels import at_least, at_most, largest, smallest
from detectors.rate_watch import (
    LEAST_LEVEL,
    MOST_AT_ONCE,
    MOST_LEVEL,
    NAME,
    RateAlarm,
    RateState,
    RateWatch,
)
from detectors.usual_rates import DAY_MS, HOUR_MS, HOURS, MOST_SEGMENTS, WIDTHS_MS, UsualRates, bucket_of

RATE, SECOND_MS, MINUTE_MS = 0.001, 1_000, 60_000


@dataclass
class Came:
    """Records as `learn_rates` reads them of events."""

    time_ms: NDArray[np.int64]
    segments: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.time_ms)


def stream(seed: int, days: float, a_second: Any, dispersion: float = 0.0, start_ms: int = 0) -> NDArray[np.int64]:
    """Times of records at a rate by event time, each minute's varying by itself."""
    rng = np.random.default_rng(seed)
    begins = np.arange(start_ms, start_ms + int(days * DAY_MS), MINUTE_MS)
    mean = np.broadcast_to(a_second(begins) * 60.0, begins.shape)
    counts = rng.poisson(rng.gamma(1 / dispersion, mean * dispersion) if dispersion else mean)
    return np.sort(np.repeat(begins, counts) + rng.integers(0, MINUTE_MS, counts.sum()))


def learned(time_ms: NDArray[np.int64], segments: list[str | None] | None = None, rate: float = RATE) -> UsualRates:
    came: Any = Came(time_ms, segments)
    usual = learn_rates([came], 0, rate)
    assert usual is not None
    return usual


def judged(
    watch: RateWatch, time_ms: NDArray[np.int64], segments: list[str | None] | None = None
) -> tuple[list[RateAlarm], RateState]:
    """All of it as one slice."""
    state, rated = watch.update_many(None, 1, -1, time_ms, segments, np.arange(len(time_ms)), -1)
    assert state is not None
    return list(rated.alarms), state


def flat(a_second: float) -> Any:
    return lambda begins: np.full(len(begins), a_second)


def by_day(begins: NDArray[np.int64]) -> NDArray[np.float64]:
    """A smooth daily cycle, nine times as many at its top as at its bottom."""
    return 0.5 * (1 + 0.8 * np.sin(2 * np.pi * begins / DAY_MS))


def by_shift(begins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Work from 6 to 22 o'clock, and nothing at night."""
    hour = begins % DAY_MS / HOUR_MS
    return np.where((hour >= 6) & (hour < 22), 0.5, 0.0)


@given(st.floats(0.01, 100), st.sampled_from([0.0, 0.02, 0.3, 2.0]), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_tails_are_sums_of_probabilities(mean: float, dispersion: float, count: int) -> None:
    """Both tails are what adding up the probabilities one by one gives, and quantiles are where they pass a share."""
    mass = []
    for k in range(6_000):
        if dispersion:
            size = 1 / dispersion
            log = math.lgamma(k + size) - math.lgamma(size) + size * math.log(size / (size + mean))
            log += k * math.log(mean / (size + mean))
        else:
            log = k * math.log(mean) - mean
        mass.append(math.exp(log - math.lgamma(k + 1)))
    few, many = sum(mass[: count + 1]), sum(mass[count:])
    assert at_most(count, mean, dispersion) == pytest.approx(few, rel=1e-6, abs=1e-9)
    assert at_least(count, mean, dispersion) == pytest.approx(many, rel=1e-6, abs=1e-9)
    low, high = smallest(0.01, mean, dispersion), largest(0.01, mean, dispersion)
    assert at_most(low, mean, dispersion) > 0.01 >= at_most(low - 1, mean, dispersion)
    assert at_least(high, mean, dispersion) > 0.01 >= at_least(high + 1, mean, dispersion)


@pytest.mark.parametrize(("a_second", "width"), [(3.0, 10_000), (1.0, 60_000), (0.03, 900_000), (0.0001, HOUR_MS)])
def test_a_bucket_is_as_narrow_as_its_records_allow(a_second: float, width: int) -> None:
    """The narrowest with 20 records on average; an hour where there are never so many."""
    assert bucket_of(int(a_second * 86_400), 1, DAY_MS) == width
    assert width in WIDTHS_MS


USUAL = learned(
    stream(1, 2.5, flat(0.9)), ["a" if i % 3 else None if i % 2 else "b" for i in range(len(stream(1, 2.5, flat(0.9))))]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-400, 900), st.sampled_from(["a", "b", None, "new"])), min_size=1, max_size=120),
    st.lists(st.integers(0, 120), max_size=8),
    st.sampled_from([0, 7_000, 400_000, 90 * MINUTE_MS * 60]),
)
def test_any_slicing_and_restoring_is_the_same(
    steps: list[tuple[int, str | None]], cuts: list[int], reorder_ms: int
) -> None:
    """Cut anywhere, saved and read back, clocks going back and silences included: the same is said, at one record."""
    watch = RateWatch(USUAL, 0.05, reorder_ms)
    time_ms = 10 * DAY_MS + np.cumsum([s * SECOND_MS for s, _ in steps]).astype(np.int64)
    segments, offsets = [name for _, name in steps], np.arange(len(steps)) * 2
    at_once, whole = watch.update_many(None, 7, -1, time_ms, segments, offsets, -1)
    state, alarms, decisions, newest = None, [], 0, -1
    for low, high in pairwise([0, *sorted(min(c, len(steps)) for c in cuts), len(steps)]):
        last = int(offsets[low - 1]) if low else -1
        state, rated = watch.update_many(
            state, 7, newest, time_ms[low:high], segments[low:high], offsets[low:high], last
        )
        alarms, decisions = [*alarms, *rated.alarms], decisions + rated.judged
        newest = max([newest, *time_ms[low:high].tolist()])
        if state is not None:
            read = READERS[NAME](state.pack())
            assert isinstance(read, RateState)
            state = read
    assert tuple(alarms) == whole.alarms
    assert decisions == whole.judged
    assert state == at_once


def test_a_bucket_waits_for_its_last_records() -> None:
    """It is judged once the watermark has passed its end by `late` and a bucket; until then what comes counts."""
    watch, width = RateWatch(learned(stream(2, 2.5, flat(0.5))), RATE, 30_000), MINUTE_MS
    start = 20 * DAY_MS
    assert watch.usual.bucket_ms == width
    _, before = judged(watch, np.array([start, start + width + 1, start + 3 * width + 30_000 - 1]))
    assert before.judged == 0
    late = np.array(
        [start, start + width + 1, start + 3 * width + 29_999, start + width + 2, start + 3 * width + 30_000]
    )
    alarms, after = judged(watch, late)
    assert after.judged == 1
    assert [(a.from_ms, a.until_ms, a.count, a.offset) for a in alarms] == [(start + width, start + 2 * width, 2, 4)]
    _, afterwards = watch.update_many(
        after, 1, int(late.max()), np.array([start + width + 3]), None, np.array([5]), 4
    )  # too late
    assert afterwards.judged == 0


@pytest.mark.parametrize(
    ("factor", "direction"), [(2.0, "too_many"), (0.5, "too_few"), (0.0, "too_few")], ids=["doubled", "halved", "none"]
)
def test_a_change_is_found_within_few_buckets(factor: float, direction: str) -> None:
    """Doubled, halved, silent: an alarm of the right direction within four buckets, with what was expected."""
    usual = learned(stream(3, 3, flat(0.6), 0.01))
    change_ms = 20 * DAY_MS + 6 * HOUR_MS
    before = stream(4, 0.25, flat(0.6), 0.01, 20 * DAY_MS)
    after = stream(5, 0.25, flat(0.6 * factor), 0.01, change_ms)
    whole = np.concatenate([before, after, [change_ms + 7 * HOUR_MS]])
    alarms, _ = judged(RateWatch(usual, RATE), whole)
    first = next(a for a in alarms if a.from_ms >= change_ms)
    assert first.direction == direction
    assert first.until_ms <= change_ms + 4 * usual.bucket_ms
    assert first.p_value <= RATE
    assert (first.count < first.low) if direction == "too_few" else (first.count > first.high)
    assert first.low < first.median < first.high


@pytest.mark.parametrize("cycle", [by_day, by_shift], ids=["smooth", "shifts"])
def test_two_weeks_of_a_daily_cycle_are_no_alarm(cycle: Any) -> None:
    """What training saw twice at each hour is usual: a stream that stops at night is expected to, and starts again."""
    usual = learned(stream(6, 4, cycle), rate=0.0001)
    assert usual.by_hour
    alarms, state = judged(RateWatch(usual, 0.0001), stream(7, 14, cycle, start_ms=4 * DAY_MS))
    assert state.judged > 14 * DAY_MS * 0.9 / usual.bucket_ms
    assert alarms == []


def test_a_stream_that_does_not_come_back_in_the_morning() -> None:
    """The night's silence is none; that of the morning is told when time moves on, by record or idle clock."""
    usual = learned(stream(6, 4, by_shift))
    watch = RateWatch(usual, RATE)
    alarms, state = judged(watch, stream(8, 22 / 24, by_shift, start_ms=20 * DAY_MS))
    assert alarms == []
    newest, night = 20 * DAY_MS + 22 * HOUR_MS, 20 * DAY_MS + 29 * HOUR_MS
    nothing = np.empty(0, np.int64)
    state, asleep = watch.update_many(state, 1, night, nothing, None, nothing, 99)
    assert asleep.judged > 0
    assert asleep.alarms == ()
    _, awake = watch.update_many(state, 1, newest + 9 * HOUR_MS, nothing, None, nothing, 99)
    assert {a.direction for a in awake.alarms} == {"too_few"}
    assert awake.alarms[0].offset == 99
    assert awake.alarms[0].from_ms >= 21 * DAY_MS + 6 * HOUR_MS


@pytest.mark.parametrize("dispersion", [0.0, 0.05, 0.3])
def test_the_promise_is_kept(dispersion: float) -> None:
    """Of 60,000 counts of a stream as in training no more are alarms than promised, within a factor of 1.5."""
    alarms, decisions = 0, 0
    for seed in range(3):
        usual = learned(stream(10 + seed, 4, flat(1.0), dispersion))
        found, state = judged(RateWatch(usual, RATE), stream(20 + seed, 14, flat(1.0), dispersion, 4 * DAY_MS))
        alarms, decisions = alarms + len(found), decisions + state.judged
    assert decisions > 60_000
    assert 0.2 * RATE <= alarms / decisions <= 1.5 * RATE


def test_segments_are_judged_apart() -> None:
    """One that falls silent is told while the other goes on; one that training never had says nothing."""
    rng = np.random.default_rng(0)
    time_ms = stream(9, 3, flat(1.0))
    usual = learned(time_ms, [("cart", "pay")[k] for k in rng.integers(0, 2, len(time_ms))])
    live = stream(10, 0.25, flat(1.0), start_ms=10 * DAY_MS)
    named = [("cart", "pay", "new")[k] for k in rng.integers(0, 2, len(live))]
    half = 10 * DAY_MS + 3 * HOUR_MS
    named = ["new" if name == "pay" and t >= half else name for name, t in zip(named, live.tolist(), strict=True)]
    alarms, state = judged(RateWatch(usual, RATE), live, list(named))
    silent = [a for a in alarms if a.segment == "pay" and a.from_ms >= half]
    assert {a.count for a in silent} == {0}
    assert len(silent) >= 20
    assert {a.segment for a in alarms} <= {"cart", "pay"}
    assert len([a for a in alarms if a.segment == "cart"]) <= 2
    assert state.counts.shape[1] == 2


def test_a_level_follows_slow_change_within_bounds() -> None:
    """A rate that rises by a third over a week is followed without alarms; one that stays away is told to the end."""
    usual = learned(stream(11, 4, flat(0.05)), rate=0.0001)
    watch = RateWatch(usual, 0.0001)
    week = stream(12, 7, lambda b: 0.05 * (1 + (b - 4 * DAY_MS) / DAY_MS / 21), start_ms=4 * DAY_MS)
    alarms, state = judged(watch, week)
    assert alarms == []
    assert 1.15 < float(state.levels[0]) < 1.4
    alarms, state = judged(watch, np.concatenate([week, [30 * DAY_MS]]))
    assert state.levels[0] == LEAST_LEVEL
    assert alarms[-1].until_ms >= week[-1] + (MOST_AT_ONCE - 3) * usual.bucket_ms
    _, state = judged(watch, stream(13, 20, flat(0.5), start_ms=4 * DAY_MS))
    assert state.levels[0] == MOST_LEVEL


def test_a_long_silence_is_bounded() -> None:
    """A year without a record costs as much as its first thousand buckets, and counting begins anew after it."""
    usual = learned(stream(14, 3, flat(1.0)))
    live = stream(15, 0.1, flat(1.0), start_ms=10 * DAY_MS)
    late = 375 * DAY_MS + np.arange(0, HOUR_MS, SECOND_MS)
    alarms, state = judged(RateWatch(usual, RATE), np.concatenate([live, late]))
    assert state.judged < MOST_AT_ONCE + 0.1 * DAY_MS / usual.bucket_ms + HOUR_MS / usual.bucket_ms + 2
    assert [a for a in alarms if a.from_ms >= 375 * DAY_MS] == []


def test_memory_is_bounded() -> None:
    """However many segments and however far records may come out of order, a state is small."""
    names: list[str | None] = [f"s{i % 1_000}" for i in range(40_000)]
    usual = learned(np.linspace(0, 3 * DAY_MS, 40_000).astype(np.int64), names)
    assert len(usual.segments) == MOST_SEGMENTS
    _, state = judged(RateWatch(usual, RATE, 900 * DAY_MS), np.arange(9) * DAY_MS, names[:9])
    assert len(state.pack()) < MAX_BYTES


def test_too_short_a_history_says_nothing() -> None:
    """Without two days hours are not told apart; without 32 buckets nothing is usual."""
    assert not learned(stream(16, 1.5, flat(1.0))).by_hour
    few: Any = Came(np.arange(0, 20 * MINUTE_MS, 10 * SECOND_MS))
    assert learn_rates([few], 0, RATE) is None
    assert learn_rates([], 0, RATE) is None


def test_another_bundle_begins_anew() -> None:
    """Counts and levels belong to what is usual by one bundle."""
    watch = RateWatch(learned(stream(17, 3, flat(1.0))), RATE)
    _, state = judged(watch, stream(18, 0.1, flat(1.0), start_ms=10 * DAY_MS))
    newest = int(10.1 * DAY_MS)
    after, rated = watch.update_many(state, 2, newest, np.array([newest]), None, np.array([5]), 4)
    assert after is not None
    assert (after.bundle, after.judged, rated.judged) == (2, 0, 0)
    assert after.next_ms > newest


def test_state_and_usual_are_what_they_were() -> None:
    """Every number comes back; other bytes are refused, another version begins anew."""
    usual = learned(stream(19, 3, flat(1.0)))
    again = UsualRates.from_json(json.loads(json.dumps(usual.to_json())))
    assert again is not None
    for column in fields(UsualRates):
        np.testing.assert_array_equal(getattr(again, column.name), getattr(usual, column.name))
    assert UsualRates.from_json(usual.to_json() | {"version": 9}) is None
    with pytest.raises(ValueError, match="segments or hours"):
        UsualRates.from_json(usual.to_json() | {"segments": []})
    assert usual.counts.shape == (1, HOURS)
    _, state = judged(RateWatch(usual, RATE), stream(18, 0.1, flat(1.0), start_ms=10 * DAY_MS))
    read = READERS[NAME](replace(state, judged=5).pack())
    assert isinstance(read, RateState)
    for column in fields(RateState):
        np.testing.assert_array_equal(getattr(read, column.name), getattr(replace(state, judged=5), column.name))
    assert READERS[NAME](b"\x09" + state.pack()[1:]) is None
    for harm in (b"", b"\1" * 60, state.pack()[:-3]):
        with pytest.raises(ValueError, match=r"short|buffer"):
            READERS[NAME](harm)
