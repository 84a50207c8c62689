"""Numbers judged by their own past: fast equals naive in any slicing, what is odd is found, and odd input is borne."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.kernels import LATE, STEP
from models.runtime import Scores
from models.seasonal import SeasonalRuntime, seasonal_weights
from models.seasonal_kernels import CAP, LONG, NUMBERS, SHORT, SPAN
from models.spec import SEASONAL
from tests.models.drawn import draw_operations

DAY_MS, MINUTE_MS = 86_400_000, 60_000
BEGIN_MS = 1_700_000_000_000 // DAY_MS * DAY_MS


def f32(x: float) -> float:
    return float(np.float32(x))


class NaiveSeries:
    """One number of one session, value by value, in plain words; rounded to float32 after each, as a row is."""

    def __init__(self) -> None:
        self.seen, self.waited, self.pace = 0, 0.0, 0.0
        self.origin = self.last = self.slow = 0.0
        self.recent = [0.0] * (SHORT - 1)
        self.moments = [(0.0, 0.0)] * 4
        self.parts = {part: (0.0, 0.0, 0.0) for part in range(48)}
        self.part: int | None = None
        self.half_day: int | None = None
        self.worst, self.observed = -8.0, 0.0
        self.worsts = [0.0] * 100
        self.peak, self.age = 0.0, 0.0

    def wait(self, gap: float) -> None:
        """Let so many seconds pass."""
        self.waited, self.age = f32(self.waited + gap), f32(self.age + gap)

    def judge(self, value: float, time_ms: int, rest_s: float) -> float:
        """Score a value, then learn it."""
        value = min(max(value, -1e30), 1e30)
        if self.seen == 0:
            self.origin = value
        else:
            self.pace += (math.log(max(self.waited, 1e-3)) - self.pace) / min(self.seen, LONG)
        half_day = time_ms // (DAY_MS // 2)
        if half_day != self.half_day:
            if self.seen:
                kept = math.exp(-0.5 / 60)
                self.worsts = [kept * count for count in self.worsts]
                self.worsts[self._bin(self.worst)] += 1
                self.observed = kept * self.observed + 0.5
            self.worst, self.half_day = -8.0, half_day
            self._move_origin()
        elif self.seen == 10:
            self._move_origin()
        x, floor = value - self.origin, 1e-6 * max(abs(value), abs(self.origin)) + 1e-30
        part = time_ms % DAY_MS // (DAY_MS // 48)
        signals = [self._season(x, part, floor), x - self.last, (x + sum(self.recent)) / SHORT - self.slow, x]
        nats = 0.0
        for k, (signal, (mean, deviation)) in enumerate(zip(signals, self.moments, strict=True)):
            if self.seen >= 10:
                off = abs(signal - mean) / max(deviation, 1e-6 if k == 0 else floor)
                nats += (CAP if off > 6 else min(CAP, -math.log(math.erfc(off / math.sqrt(2))))) ** 2
            self.moments[k] = self._with(mean, deviation, signal, 1 / (self.seen + 1))
        nats = math.sqrt(nats / 4) + self.pace - math.log(86_400)
        bad = sum(self.worsts[self._bin(nats) :])
        score = math.log1p((self.observed + 28) / (bad + 28 * math.exp(-nats))) if self.observed > 1.25 else 0.0
        self.worst = max(self.worst, nats)
        if rest_s and not (score > self.peak or self.age > rest_s):
            score = 0.0
        elif rest_s:
            self.peak, self.age = score, 0.0
        self._learn(x, part)
        return score

    @staticmethod
    def _with(mean: float, deviation: float, x: float, weight: float) -> tuple[float, float]:
        off = x - mean
        return mean + weight * off, math.sqrt((1 - weight) * (deviation**2 + weight * off * off))

    @staticmethod
    def _bin(nats: float) -> int:
        return int(min(max((nats + 8) / 0.25, 0), 99))

    def _season(self, x: float, part: int, floor: float) -> float:
        near = [self.parts[(part + k) % 48] for k in range(-2, 3)]
        weight = sum(w for w, _, _ in near)
        if weight < 3:
            return 0.0
        mean = sum(w * m for w, m, _ in near) / weight
        variance = sum(w * (d * d + (m - mean) ** 2) for w, m, d in near) / weight
        return (x - mean) / max(math.sqrt(variance), 0.05 * self.moments[3][1], floor)

    def _move_origin(self) -> None:
        moved = f32(self.origin + self.moments[3][0]) - self.origin
        self.origin += moved
        self.last, self.slow = self.last - moved, self.slow - moved
        self.recent = [x - moved for x in self.recent]
        self.moments[3] = (self.moments[3][0] - moved, self.moments[3][1])
        self.parts = {p: (w, m - moved if w else m, d) for p, (w, m, d) in self.parts.items()}

    def _learn(self, x: float, part: int) -> None:
        weight, mean, deviation = self.parts[part]
        weight = weight * (1 if part == self.part else 1 - 1 / 14) + 1
        self.parts[part] = (weight, *self._with(mean, deviation, x, 1 / weight))
        self.part = part
        self.slow += (x - self.slow) / min(self.seen + 1, LONG)
        self.recent, self.last = [x, *self.recent[:-1]], x
        self.seen, self.waited = min(self.seen + 1, SPAN - 1), 0.0
        self.origin, self.slow, self.pace, self.last = f32(self.origin), f32(self.slow), f32(self.pace), f32(self.last)
        self.recent = [f32(x) for x in self.recent]
        self.moments = [(f32(m), f32(d)) for m, d in self.moments]
        self.parts = {p: (f32(w), f32(m), f32(d)) for p, (w, m, d) in self.parts.items()}
        self.worsts = [f32(count) for count in self.worsts]
        self.worst, self.observed, self.peak = f32(self.worst), f32(self.observed), f32(self.peak)


def score_series(
    values: np.ndarray, every_ms: int = 5 * MINUTE_MS, refractory_ms: int = 0, times: np.ndarray | None = None
) -> tuple[np.ndarray, Scores]:
    """The (n,) scores of one session of (n, C) or (n,) values, and all that is said of it."""
    values = values.reshape(len(values), -1).astype(np.float32)
    n, channels = values.shape
    times = BEGIN_MS + every_ms * np.arange(n) if times is None else times
    runtime = SeasonalRuntime(seasonal_weights(channels, refractory_ms), 0, channels)
    gaps = np.maximum(np.diff(times, prepend=times[:1]), 0) / 1_000
    found = runtime.score_and_step(
        np.zeros(n, np.int8), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.arange(n) == 0,
        np.zeros((n, 0), np.int32), np.log1p(gaps).astype(np.float32), np.zeros((1, runtime.width), np.float32),
        numbers=values, time_ms=times,
    )  # fmt: skip
    return found.surprise.sum(1), found


def daily(rng: np.random.Generator, days: int, level: float = 100.0) -> np.ndarray:
    """A value every five minutes, with a cycle of a day that is ten times its noise."""
    return level + 10 * np.sin(2 * np.pi * np.arange(288 * days) / 288) + rng.normal(size=288 * days)


odd = st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, 5.0, 1e-40])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16), count=st.integers(0, 150), cuts=st.sets(st.integers(0, 150)),
    rest_s=st.sampled_from([0, 900]),
    odds=st.lists(st.tuples(st.integers(0, 149), odd), max_size=5),
    step=st.sampled_from([0, 60, 4_000, 50_000]),
)  # fmt: skip
def test_any_slicing_gives_the_same_bits_and_those_of_the_naive_way(
    seed: int, count: int, cuts: set[int], rest_s: int, odds: list[tuple[int, float]], step: int
) -> None:
    """Steps, late records and ends of four sessions, at odd times that also go back, cut anywhere."""
    rng = np.random.default_rng(seed)
    kind, row, record, first = draw_operations(rng, np.zeros(4, np.bool_), count, hot=0.7)
    n = len(first)
    values = np.round(rng.normal(50, 20, (n, 2)), int(rng.integers(0, 3))).astype(np.float32)
    for at, value in odds:
        if at < n:
            values[at, 0] = value
    times = BEGIN_MS + np.cumsum(rng.integers(-step // 4, step + 1, n)) * 1_000
    log_gap = np.log1p(rng.integers(0, step + 1, n)).astype(np.float32)
    runtime = SeasonalRuntime(seasonal_weights(2, rest_s * 1_000), 1, 2)
    given_ = (np.array(kind, np.int8), np.array(row, np.int32), np.array(record, np.int32))
    begun = np.full((4, runtime.width + 3), 7, np.float32)  # whatever stood there; three numbers are another's

    def scored(low: int, high: int, hidden: np.ndarray) -> Scores:
        of = [r for k, r in zip(kind[low:high], record[low:high], strict=True) if k in (STEP, LATE)]
        least, most = (of[0], of[-1] + 1) if of else (0, 0)
        part = slice(least, most)
        before = hidden.copy()
        found = runtime.score_and_step(
            given_[0][low:high], given_[1][low:high], np.maximum(given_[2][low:high] - least, 0).astype(np.int32),
            np.array(first[part], np.bool_), np.zeros((most - least, 1), np.int32), log_gap[part], hidden,
            numbers=values[part], time_ms=times[part],
        )  # fmt: skip
        np.testing.assert_array_equal(hidden, before)
        return found

    whole, state, surprise = scored(0, len(kind), begun), begun, []
    for low, high in pairwise(sorted({0, len(kind), *(c for c in cuts if c < len(kind))})):
        part = scored(low, high, state)
        state = part.hidden
        surprise.append(part.surprise)
    if surprise:
        np.testing.assert_array_equal(np.concatenate(surprise), whole.surprise)
        np.testing.assert_array_equal(state, whole.hidden)
    assert np.isfinite(whole.hidden).all()
    assert (whole.hidden[:, runtime.width :] == 7).all()
    assert np.isfinite(whole.surprise).all()
    assert (whole.surprise >= 0).all()
    naive: dict[int, list[NaiveSeries]] = {}
    wanted = np.zeros((n, 2))
    for k, s, r in zip(kind, row, record, strict=True):
        if k not in (STEP, LATE):
            continue
        mine = [NaiveSeries(), NaiveSeries()] if first[r] else copy.deepcopy(naive[s])
        for c, series in enumerate(mine):
            series.wait(0.0 if first[r] else float(np.expm1(float(log_gap[r]))))
            if math.isfinite(values[r, c]):
                wanted[r, c] = series.judge(float(values[r, c]), int(times[r]), float(rest_s)) / 2
        if k == STEP:
            naive[s] = mine
    np.testing.assert_allclose(whole.surprise[:, 1:], wanted, rtol=1e-4, atol=1e-4)
    assert (whole.surprise[:, 0] == 0).all()


def test_what_is_odd_is_found() -> None:
    """A spike, another level, a day without its peak, and a tremble each stand out from four weeks before them."""
    rng = np.random.default_rng(1)
    usual, at = daily(rng, 35), 288 * 28
    spike, shifted, flat, wild = (usual.copy() for _ in range(4))
    spike[at + 100] += 30
    shifted[at + 200 :] += 25
    flat[at : at + 288] = 100
    wild[at + 50 : at + 80 : 2] += 15
    assert score_series(usual)[0][432:].max() < math.log1p(35)
    for values, where in ((spike, 100), (shifted, 200), (flat, 30), (wild, 50)):
        scores = score_series(values)[0]
        assert scores[at + where : at + where + 48].max() > math.log1p(35)
        assert scores[432:at].max() < math.log1p(28)


def test_a_rate_is_one_of_days_however_often_values_come() -> None:
    """Of noise, scores are about as rare as they say, at a value an hour as at one in five minutes."""
    rng = np.random.default_rng(2)
    for every_ms, days in ((60 * MINUTE_MS, 400), (5 * MINUTE_MS, 200)):
        scores = score_series(rng.normal(size=days * DAY_MS // every_ms), every_ms)[0]
        half_days = scores[: len(scores) // (DAY_MS // 2 // every_ms) * (DAY_MS // 2 // every_ms)]
        worst = half_days.reshape(-1, DAY_MS // 2 // every_ms).max(1)
        for between in (3, 10, 30):
            assert (worst > math.log1p(between)).sum() < 1.5 * days / between + 3


def test_what_a_series_often_does_is_no_longer_strange() -> None:
    """The first spike is; the twentieth, a week apart each, is nearly as usual as that."""
    values = daily(np.random.default_rng(3), 150)
    values[288 * 10 + 7 :: 288 * 7 + 35] += 40
    at = np.flatnonzero(np.arange(len(values)) % (288 * 7 + 35) == (288 * 10 + 7) % (288 * 7 + 35))
    scores = score_series(values)[0][at[at > 288 * 9]]
    assert scores[0] > 6
    assert scores[-1] < math.log1p(60)


def test_a_lasting_change_is_told_once() -> None:
    """Within the refractory period only what is stranger than all before has a score; after it others have again."""
    values = np.random.default_rng(4).normal(size=288 * 20)
    at = 288 * 15
    values[at : at + 100 : 20] = [5, 4, 7, 4.5, 4]
    all_scores, resting = score_series(values)[0], score_series(values, refractory_ms=6 * 3_600_000)[0]
    told = resting > 0
    np.testing.assert_array_equal(resting[told], all_scores[told])
    assert told[[at, at + 40]].all()
    assert not told[[at + 20, at + 60, at + 80]].any()
    assert told[at + 41 + 72 : at + 41 + 72 + 3].any()


def test_a_constant_is_never_strange_until_it_moves() -> None:
    """Nor is noise of the number format; a change after weeks of stillness is as strange as can be."""
    for level in (0.0, 0.1, -1e9, 16_777_216.0):
        values = np.full(288 * 20, level, np.float32)
        assert score_series(values)[0].max() < 0.2
        values[288 * 19] = level + max(1.0, abs(level) / 100)
        scores, found = score_series(values)
        assert scores[288 * 19] > 5
        low, _, high = SeasonalRuntime(seasonal_weights(1, 0), 0, 1).intervals(found.states[288 * 19])[0] or (0, 0, 0)
        assert low == pytest.approx(level, rel=1e-4, abs=1e-4)
        assert high == pytest.approx(level, rel=1e-4, abs=1e-4)
    assert score_series(np.full(500, np.nan))[0].max() == 0


def test_the_level_does_not_matter() -> None:
    """Values far from 0, and from the first, are judged by what they differ by: nothing is lost to float32."""
    noise = daily(np.random.default_rng(5), 30, level=0).round(1)
    near = score_series(noise)[0]
    far = noise + 1e5
    far[0] = 0.0
    for level in (1e5, -1e5):
        np.testing.assert_allclose(score_series(noise + level)[0][432:], near[432:], atol=0.1)
    again = score_series(far)[0]
    assert np.abs(again - near)[SPAN + 432 :].mean() < 0.2  # the first value was a spike to be forgotten


def test_gaps_and_a_clock_set_back() -> None:
    """A week without values, values at odd times, and an hour that comes twice: no alarm by that alone."""
    rng = np.random.default_rng(6)
    times = BEGIN_MS + np.cumsum(rng.choice([MINUTE_MS, 5 * MINUTE_MS, 30 * MINUTE_MS], 288 * 20))
    times[3_000:] += 7 * DAY_MS
    times[4_000:] -= 3_600_000
    values = 100 + 10 * np.sin(2 * np.pi * times / DAY_MS) + rng.normal(size=len(times))
    assert score_series(values, times=times)[0][432:].max() < 5


def test_bands_hold_nine_tenths() -> None:
    """Where a number should lie by the strangest signal: at most one in ten lies outside, as the rest are milder."""
    values = daily(np.random.default_rng(7), 30)
    _, found = score_series(values)
    runtime = SeasonalRuntime(seasonal_weights(1, 0), 0, 1)
    bands = [runtime.intervals(state)[0] for state in found.states]
    assert bands[:10] == [None] * 10
    inside = [low <= value <= high for (low, _, high), value in zip(bands[432:], values[432:], strict=True)]  # type: ignore[misc]
    assert np.mean(inside) > 0.6
    assert not inside[np.argmax(score_series(values)[0][432:])]


def test_a_row_keeps_as_much_after_a_year() -> None:
    """269 numbers for each, however long the series is."""
    assert NUMBERS == SEASONAL == 269
    _, found = score_series(daily(np.random.default_rng(8), 365).reshape(-1, 1))
    assert found.hidden.shape == (1, 269)
    assert np.isfinite(found.hidden).all()


def test_numbers_share_the_score() -> None:
    """Of two numbers each adds half of its own score, and a missing one nothing."""
    rng = np.random.default_rng(9)
    one, other = daily(rng, 10), daily(rng, 10)
    both = score_series(np.stack([one, other], 1))[1].surprise
    np.testing.assert_array_equal(both[:, 0], score_series(one)[1].surprise[:, 0] / np.float32(2))
    gone = other.copy()
    gone[::3] = np.nan
    missing = score_series(np.stack([one, gone], 1))[1].surprise
    assert (missing[::3, 1] == 0).all()
    np.testing.assert_array_equal(missing[:, 0], both[:, 0])


def test_a_bundle_for_others_is_refused() -> None:
    """What it is for is said, and what it lacks."""
    with pytest.raises(BundleError, match="judges 2 numbers, the stream has 3"):
        SeasonalRuntime(seasonal_weights(2, 0), 0, 3)
    with pytest.raises(BundleError, match="lacks what it should say"):
        SeasonalRuntime({"channels": np.ones(1)}, 0, 1)
