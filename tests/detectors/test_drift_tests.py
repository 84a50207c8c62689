"""The tests for change do what river's do, and what they claim; what they remember is small and comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift
from scipy import stats

from detectors.adwin import MAX_BUCKETS, Adwin
from detectors.drift_tests import (
    Ddm,
    Kswin,
    PageHinkley,
    at_least,
    binned_ks,
    ks_distance,
    ks_p_value,
    psi,
)

Values = list[float]


@st.composite
def series(draw: st.DrawFn) -> Values:
    """Stretches of noise in [0, 1] around levels of their own, some constant."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts = draw(
        st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.4])), max_size=5)
    )
    return [float(v) for n, level, noise in parts for v in np.clip(random.normal(level, noise, n), 0, 1)]


def changes(test: Any, values: Values) -> list[int]:
    """Where ours sees changes."""
    found = []
    for i, value in enumerate(values):
        test = test.update_one(value)
        found += [i] * test.has_changed
    return found


def of_river(test: Any, values: Values) -> list[int]:
    """Where river's does."""
    return [i for i, value in enumerate(values) if test.update(value) or test.drift_detected]


@settings(max_examples=60, deadline=None)
@given(series())
def test_adwin_is_that_of_river(values: Values) -> None:
    """The same width, mean and changes; river forgets its window after a change, ours keeps the part that is new."""
    ours, theirs = Adwin(), drift.ADWIN()
    for value in values:
        if ours.has_changed:
            ours = Adwin()
        ours = ours.update_one(value)
        theirs.update(value)
        assert ours.has_changed == theirs.drift_detected
        assert ours.width == theirs.width
        assert ours.mean == pytest.approx(theirs.estimation)


@settings(max_examples=60, deadline=None)
@given(series())
def test_adwin_keeps_the_newest_values(values: Values) -> None:
    """Its buckets are the last values, exactly: their number, mean and squares, at most five of a size."""
    adwin = Adwin()
    for value in values:
        adwin = adwin.update_one(value)
    newest = np.array(values[len(values) - adwin.width :])
    sizes = [bucket.size for bucket in adwin.buckets]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes.count(size) <= MAX_BUCKETS for size in sizes)
    if len(newest):
        assert adwin.mean == pytest.approx(newest.mean())
        assert adwin.window.squares == pytest.approx(((newest - newest.mean()) ** 2).sum(), abs=1e-9)


def test_adwin_drops_what_is_old() -> None:
    """After a change its window is of the new level, and begins near the change."""
    random, adwin = np.random.default_rng(1), Adwin()
    for value in np.clip(np.concatenate([random.normal(0.3, 0.1, 3_000), random.normal(0.6, 0.1, 600)]), 0, 1):
        adwin = adwin.update_one(float(value))
    assert adwin.mean == pytest.approx(0.6, abs=0.02)
    assert 500 <= adwin.width <= 700


def test_adwin_forgets_nothing_and_stays_small() -> None:
    """A quarter of a million values that never change are all in the window, in less than a hundred buckets."""
    random, adwin = np.random.default_rng(2), Adwin()
    for value in random.uniform(0, 1, 250_000).tolist():
        adwin = adwin.update_one(value)
    assert adwin.width > 240_000
    assert adwin.to_array().nbytes < 2_500


@settings(max_examples=40, deadline=None)
@given(series())
def test_page_hinkley_is_that_of_river(values: Values) -> None:
    """With its settings, or with others."""
    for slack, threshold in ((0.005, 50.0), (0.05, 3.0)):
        theirs = drift.PageHinkley(delta=slack, threshold=threshold)
        assert changes(PageHinkley(slack, threshold), values) == of_river(theirs, values)


@settings(max_examples=40, deadline=None)
@given(series())
def test_ddm_is_that_of_river(values: Values) -> None:
    """Over errors of any frequency."""
    errors = [value > 0.6 for value in values]
    theirs = drift.binary.DDM()
    assert changes(Ddm(), errors) == [i for i, e in enumerate(errors) if theirs.update(e) or theirs.drift_detected]


@settings(max_examples=40, deadline=None)
@given(series())
def test_kswin_is_what_its_paper_says(values: Values) -> None:
    """The window's newest values against its older ones, at every value."""
    window, found = Values(), []
    for i, value in enumerate(values):
        window = [*window, value][-100:]
        if len(window) == 100:
            distance = stats.ks_2samp(window[:-30], window[-30:]).statistic
            if distance > 0.1 and ks_p_value(distance, 70, 30) <= 0.005:
                found.append(i)
                window = window[-30:]
    assert changes(Kswin(), values) == found


@pytest.mark.parametrize(("n", "m"), [(30, 70), (100, 100), (500, 40)])
def test_kolmogorovs_p_values_are_right(n: int, m: int) -> None:
    """Near those that scipy counts out exactly, where they matter."""
    random = np.random.default_rng(3)
    for shift in np.linspace(0, 1, 20):
        one, other = random.normal(0, 1, n), random.normal(shift, 1, m)
        exact = stats.ks_2samp(one, other, method="exact")
        assert ks_distance(one, other) == pytest.approx(exact.statistic)
        assert ks_p_value(exact.statistic, n, m) == pytest.approx(exact.pvalue, rel=0.35, abs=1e-4)
    assert ks_p_value(0.0, n, m) == 1.0


def test_histograms_of_the_same_are_alike() -> None:
    """Less what sampling adds, both measures are near 0 on average whatever the number of records; few tell nothing."""
    random = np.random.default_rng(4)
    q = np.array([0.4, 0.3, 0.2, 0.0999, 0.0001])
    for n in (100, 1_000, 20_000):
        counts = random.multinomial(n, q, 400)
        assert psi(counts, np.broadcast_to(q, counts.shape)).mean() < 0.6 * len(q) / n
        assert binned_ks(counts, np.broadcast_to(q, counts.shape)).mean() < 0.3 / np.sqrt(n)
    few = np.array([[31, 0, 0, 0, 0]])
    assert psi(few, q[None]) == binned_ks(few, q[None]) == 0


def test_histograms_of_others_are_not() -> None:
    """The index of a known pair of distributions, and the distance between them; a new bin counts."""
    q, p = np.array([0.5, 0.5, 1e-6]), np.array([0.8, 0.2, 0.0])
    counts = np.round(100_000 * p).astype(np.int64)[None]
    assert psi(counts, q[None])[0] == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), rel=0.01)
    assert binned_ks(counts, q[None])[0] == pytest.approx(0.3, abs=0.01)
    assert psi(np.array([[400, 400, 200]]), q[None])[0] > 1


def test_binomial_tails_are_right() -> None:
    """As scipy has them."""
    for k, n, chance in ((6, 8, 0.1), (0, 8, 0.5), (8, 8, 1.0), (3, 64, 0.02)):
        assert at_least(k, n, chance) == pytest.approx(stats.binom.sf(k - 1, n, chance))


@pytest.mark.parametrize("make", [Adwin, PageHinkley, Kswin, Ddm])
def test_what_is_saved_comes_back(make: Callable[[], Any]) -> None:
    """At any moment, the very first and that of a change among them, and in few bytes."""
    random, test = np.random.default_rng(5), make()
    for level in (0.2, 0.9, 0.9):
        for value in random.uniform(level - 0.2, level, 120).tolist():
            assert make().restored(test.to_array()) == test
            assert test.to_array().nbytes < 4_096
            test = test.update_one(value > 0.5 if make is Ddm else value)


@pytest.mark.parametrize("make", [Adwin, PageHinkley, Kswin])
def test_a_constant_never_changes(make: Callable[[], Any]) -> None:
    """No constant is a change, whatever its value."""
    for value in (0.0, 0.5, 1.0):
        assert changes(make(), [value] * 2_000) == []
