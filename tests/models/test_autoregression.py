"""Forecasts of numbers from their own last values: fast equals naive, in any slicing, and what is wrong is found."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from models.autoregression import CAP, Autoregression
from models.errors import BundleError, UnsuitableDataError


def wander(rng: np.random.Generator, records: int, channels: int = 3) -> np.ndarray:
    """Channels that each go back to their own level, in units of their own."""
    noise = rng.normal(size=(records, channels))
    values = np.zeros((records, channels))
    for t in range(1, records):
        values[t] = 0.8 * values[t - 1] + noise[t]
    return values * 10.0 ** np.arange(channels) + 5


def some_model(rng: np.random.Generator, lags: int = 3) -> Autoregression:
    return Autoregression.fit([wander(rng, 400), wander(rng, 300)], lags, span=5)


def naive_scores(model: Autoregression, session: np.ndarray) -> list[float]:
    """One session, value by value, with lists that grow."""
    past: list[list[float]] = [[] for _ in range(model.channels)]
    level: list[float | None] = [None] * model.channels
    scores = []
    for record in session.tolist():
        for c, value in enumerate(record):
            if not math.isfinite(value):
                if past[c]:
                    past[c].append(past[c][-1])
                continue
            now = float(np.float32((value - model.mean[c]) / model.spread[c]))
            if past[c]:
                last = ([past[c][0]] * model.lags + past[c])[: -model.lags - 1 : -1]
                off = now - sum(w * v for w, v in zip(model.coefficients[c], last, strict=True))
                before = model.usual[c] if level[c] is None else level[c]
                level[c] = before + 2 / (model.span + 1) * (min(off * off, CAP * CAP) - before)
            past[c].append(now)
        known = [math.sqrt(v) for v in level if v is not None]
        scores.append(sum(known) / len(known) if known else math.nan)
    return scores


values = st.one_of(
    st.floats(-50, 50), st.just(math.nan), st.just(math.inf), st.floats(-1e30, 1e30), st.sampled_from([0.0, 5.0])
)
records = st.tuples(st.integers(0, 3), st.lists(values, min_size=3, max_size=3))


@settings(deadline=None)
@given(stream=st.lists(records, min_size=1, max_size=40), cuts=st.sets(st.integers(0, 40)), seed=st.integers(0, 3))
def test_any_slicing_gives_the_same_bits_and_those_of_the_naive_way(
    stream: list[tuple[int, list[float]]], cuts: set[int], seed: int
) -> None:
    """Records of four sessions, cut anywhere, score as each session does alone, and as one value after another."""
    model = some_model(np.random.default_rng(seed))
    row = np.array([s for s, _ in stream], np.int32)
    given_values = np.array([v for _, v in stream])
    first = np.array([s not in row[:i] for i, s in enumerate(row)])
    state, sliced = model.start(4), []
    bounds = sorted({0, len(row), *(c for c in cuts if c < len(row))})
    for low, high in pairwise(bounds):
        part = slice(low, high)
        before = state.copy()
        scores, residuals, after = model.score(row[part], first[part], given_values[part], state)
        np.testing.assert_array_equal(state, before)
        assert np.nanmax(np.abs(residuals), initial=0) <= CAP
        sliced.append(scores)
        state = after
    together = np.concatenate(sliced)
    for session in range(4):
        mine = given_values[row == session]
        np.testing.assert_array_equal(together[row == session], model.score_many(mine))
        np.testing.assert_allclose(together[row == session], naive_scores(model, mine), rtol=1e-4, atol=1e-4)


def test_a_session_that_opens_anew_knows_nothing_of_the_one_before() -> None:
    """The row of a session that has ended is begun from nothing."""
    rng = np.random.default_rng(0)
    model, used = some_model(rng), wander(rng, 50)
    state = model.score(np.zeros(50, np.int32), np.arange(50) == 0, used, model.start(1))[2]
    anew = model.score(np.zeros(50, np.int32), np.arange(50) == 0, used, state)[0]
    np.testing.assert_array_equal(anew, model.score_many(used))


def test_the_process_that_made_the_values_is_found() -> None:
    """Where each value is .8 of the one before, weights are .8 and nothing, in whatever unit."""
    model = Autoregression.fit([wander(np.random.default_rng(0), 20_000)], lags=3)
    np.testing.assert_allclose(model.coefficients, [[0.8, 0, 0]] * 3, atol=0.03)
    np.testing.assert_allclose(model.usual, 1 - 0.8**2, atol=0.03)


def test_values_missing_in_training_teach_nothing() -> None:
    """Some values missing at random, and a channel that begins late, leave the weights near what they were."""
    rng = np.random.default_rng(0)
    whole = wander(rng, 20_000)
    holes = np.where(rng.random(whole.shape) < 0.02, np.nan, whole)
    holes[:100, 1] = np.nan
    model = Autoregression.fit([holes], lags=3)
    np.testing.assert_allclose(model.coefficients[:, 0], 0.8, atol=0.05)
    np.testing.assert_allclose(model.mean, np.nanmean(holes, 0))


def test_trembling_is_found_while_the_level_stays() -> None:
    """A channel whose noise grows tenfold lifts the score well above what it was before."""
    rng = np.random.default_rng(0)
    model, fault = some_model(rng), wander(rng, 200)
    usual = model.score_many(fault)
    fault[100:, 1] += 100 * rng.normal(size=100)
    scores = model.score_many(fault)
    np.testing.assert_array_equal(scores[:100], usual[:100])
    assert scores[110:].mean() > 2 * np.nanquantile(usual, 0.99)


def test_a_channel_that_never_moved_may_not_begin_to() -> None:
    """Its first move counts as the cap; staying as it always was counts nothing."""
    rng = np.random.default_rng(0)
    still = wander(rng, 300)
    still[:, 2] = 7.0
    model = Autoregression.fit([still], lags=3)
    row, first = np.zeros(20, np.int32), np.arange(20) == 0
    session = still[:20].copy()
    assert np.nanmax(np.abs(model.score(row, first, session, model.start(1))[1][:, 2])) == 0
    session[10:, 2] = 7.5
    assert model.score(row, first, session, model.start(1))[1][10, 2] == CAP


def test_nothing_is_scored_before_there_is_a_forecast() -> None:
    """A first record has none, nor has one of which all is missing."""
    model = some_model(np.random.default_rng(0))
    nothing = np.full((3, 3), np.nan)
    assert np.isnan(model.score_many(nothing)).all()
    assert np.isnan(model.score_many(np.ones((2, 3)))).tolist() == [True, False]


def test_saved_and_read_it_scores_the_same() -> None:
    """By safetensors, bit for bit."""
    rng = np.random.default_rng(0)
    model, session = some_model(rng), wander(rng, 60)
    again = Autoregression.from_arrays(load(save(model.to_arrays())))
    np.testing.assert_array_equal(again.score_many(session), model.score_many(session))


def test_the_largest_numbers_and_empty_channels_do_not_break_it() -> None:
    """Values near the end of float64, and a channel that never had one, leave all others' scores finite."""
    wild = wander(np.random.default_rng(0), 300)
    wild[50, 0], wild[:, 1] = -1.7e308, np.nan
    model = Autoregression.fit([wild, wild[:0]], lags=3)
    assert np.isfinite(model.score_many(wild)[1:]).all()
    assert all(np.isfinite(part).all() for part in model.to_arrays().values())


def test_short_sessions_are_refused() -> None:
    """Nothing can be forecast where no session is longer than the lags."""
    with pytest.raises(UnsuitableDataError, match="no session has more than 10 records"):
        Autoregression.fit([np.ones((10, 2)), np.ones((3, 2))])


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "spread"])
def test_damaged_arrays_are_refused(damage: str) -> None:
    """A missing array, one of another shape, one that is not finite, and a spread of 0."""
    model = some_model(np.random.default_rng(0))
    arrays = model.to_arrays()
    if damage == "missing":
        del arrays["usual"]
    elif damage == "shape":
        arrays["mean"] = arrays["mean"][:2]
    elif damage == "nan":
        arrays["coefficients"] = np.full_like(model.coefficients, np.nan)
    else:
        arrays = replace(model, spread=np.zeros(3)).to_arrays()
    with pytest.raises(BundleError, match="train it again"):
        Autoregression.from_arrays(arrays)
