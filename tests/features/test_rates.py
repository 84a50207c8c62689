"""Rates of counters: what a sample gives, how the state moves, and that slicing changes neither."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.rates import LARGEST_RATE, named_rates, rates

unhurried = settings(deadline=None)  # the first example compiles
SESSIONS, COUNTERS = 3, 2
values = st.floats(0, 1e9) | st.sampled_from([0.0, math.nan, 1.0, -1.0, 1.7e308, -1.7e308])
sample = st.tuples(
    st.integers(0, SESSIONS - 1), st.booleans(), st.tuples(values, values), st.integers(-3, 50), st.integers(-1, 1)
)


def naive(samples: list[Any]) -> list[list[float]]:
    """The rule as the docstring has it, one sample after the other."""
    state: dict[tuple[int, int], tuple[float, int]] = {}
    found = []
    for session, first, sampled, time_ms in samples:
        if first:
            state = {key: kept for key, kept in state.items() if key[0] != session}
        line = []
        for counter, value in enumerate(sampled):
            before = state.get((session, counter))
            rate = math.nan
            if not math.isnan(value) and (before is None or time_ms > before[1]):
                if before is not None:
                    growth = value if value < before[0] else value - before[0]
                    rate = min(max(growth / ((time_ms - before[1]) / 1000), -LARGEST_RATE), LARGEST_RATE)
                state[session, counter] = (value, time_ms)
            line.append(rate)
        found.append(line)
    return found


def fresh() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.full((SESSIONS, COUNTERS), np.nan), np.zeros((SESSIONS, COUNTERS), np.int64)


def arrays_of(samples: list[Any]) -> tuple[NDArray[Any], ...]:
    row, first, sampled, time_ms = map(list, zip(*samples, strict=True))
    return np.array(row, np.int32), np.array(first), np.array(sampled, np.float64), np.array(time_ms, np.int64)


def timed(steps: list[Any]) -> list[Any]:
    """Clocks that mostly go on, stand still or go back now and then."""
    now, found = 1_000, []
    for row, first, sampled, step, _ in steps:
        now += step
        found.append((row, first, sampled, now))
    return found


@unhurried
@given(st.lists(sample, min_size=1, max_size=40), st.data())
def test_any_slicing_gives_the_naive_rates(steps: list[Any], data: st.DataObject) -> None:
    """Cut anywhere, the rates are those of the slow rule on the whole."""
    samples = timed(steps)
    cut = data.draw(st.integers(0, len(samples)))
    value, since = fresh()
    found = []
    for part in (samples[:cut], samples[cut:]):
        if part:
            row, first, sampled, time_ms = arrays_of(part)
            out = np.empty(sampled.shape)
            rates(row, first, sampled, time_ms, value, since, out)
            found += out.tolist()
    np.testing.assert_array_equal(found, naive(samples))
    assert not np.isinf(found).any()


@unhurried
@given(st.lists(sample, min_size=1, max_size=40))
def test_named_samples_are_a_wide_sample_with_the_others_missing(steps: list[Any]) -> None:
    """One number a record: each by its counter; what is no counter stays as it is."""
    samples = timed(steps)
    which = [step[4] for step in steps]
    wide = [(r, f, tuple(v[0] if c == w else math.nan for c in range(COUNTERS)), t)
            for (r, f, v, t), w in zip(samples, which, strict=True)]  # fmt: skip
    row, first, sampled, time_ms = arrays_of(samples)
    value, since = fresh()
    out = np.empty(len(samples))
    named_rates(row, first, np.array(which, np.int32), sampled[:, 0], time_ms, value, since, out)
    expected = [v[0] if w < 0 else line[w] for (_, _, v, _), w, line in zip(samples, which, naive(wide), strict=True)]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("100@0 150@1000 250@3000", [math.nan, 50.0, 50.0]),
        ("100@0 nan@1000 300@2000", [math.nan, math.nan, 100.0]),  # missing: over both seconds
        ("900@0 40@2000 60@3000", [math.nan, 20.0, 20.0]),  # began anew at 0
        ("100@1000 120@1000 140@2000", [math.nan, math.nan, 40.0]),  # of one moment the first counts
        ("100@1000 90@500 140@2000", [math.nan, math.nan, 40.0]),  # back in time: passed over
        ("7@0 7@500", [math.nan, 0.0]),
    ],
)  # fmt: skip
def test_the_rule_in_examples(story: str, expected: list[float]) -> None:
    """One counter of one session."""
    pairs = [part.split("@") for part in story.split()]
    sampled = np.array([[float(value)] for value, _ in pairs])
    value, since, out = np.full((1, 1), np.nan), np.zeros((1, 1), np.int64), np.empty(sampled.shape)
    m = len(pairs)
    time_ms = np.array([int(time) for _, time in pairs], np.int64)
    rates(np.zeros(m, np.int32), np.zeros(m, np.bool_), sampled, time_ms, value, since, out)
    np.testing.assert_array_equal(out[:, 0], expected)
