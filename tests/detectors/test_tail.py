"""Tails: fitted on the bulk, not bent by a burst, and refused where the largest scores refute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.tail import JOIN, LEAST, Tail


def fitted(scores: np.ndarray) -> Tail:
    """The tail of scores that have one."""
    tail = Tail.fit(scores.astype(np.float32))
    assert tail is not None
    return tail


@pytest.mark.parametrize(("shape", "least", "most"), [(0.0, 0.0, 0.2), (0.3, 0.15, 0.6), (1.0, 0.6, 1.5)])
def test_the_shape_is_found(shape: float, least: float, most: float) -> None:
    """Exponential, heavy and very heavy tails are told apart, and the scale beyond the join is right."""
    u = np.random.default_rng(0).random(5_000)
    excess = -np.log(u) if shape == 0 else (u**-shape - 1) / shape
    tail = fitted(7 + 2 * excess)
    assert least < tail.shape < most
    assert tail.mass == pytest.approx((1 + JOIN) / 5_001)
    assert tail.scale == pytest.approx(2 + shape * (tail.join - 7), rel=0.4)
    for truth in (1e-3, 1e-4):
        score = 7 + 2 * (-math.log(truth) if shape == 0 else (truth**-shape - 1) / shape)
        assert truth / 3 < tail.p_value(score) < truth * 3


def test_one_burst_changes_nothing() -> None:
    """Six records in a row, far above all others, move the fit by what their number says, not by their size."""
    scores = np.random.default_rng(1).gamma(4, 1, 2_000)
    fits = []
    for size in (25.0, 1e6):
        with_burst = scores.copy()
        with_burst[700:706] = size
        fits.append(fitted(with_burst))
    assert fits[0] == fits[1]
    assert fits[0].p_value(25.0) < 1e-3


def test_rare_scores_of_another_kind_refute_a_tail() -> None:
    """As many scattered over the history are rare normal sessions: no tail, so that the promise is kept."""
    scores = np.random.default_rng(1).gamma(4, 1, 2_000)
    scores[50::320] = 45.0
    assert (scores == 45.0).sum() == 7
    assert Tail.fit(scores.astype(np.float32)) is None


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=120, max_size=130), st.integers(0, 100))
def test_any_scores_give_a_tail_or_none(scores: list[float], seed: int) -> None:
    """Infinite, tied and enormous scores raise nothing; a tail falls from its mass and is never 0."""
    smooth = np.random.default_rng(seed).gamma(4, 1, 200)
    for given_scores in (np.array(scores, np.float32), np.array([*scores[:20], *smooth], np.float32)):
        tail = Tail.fit(given_scores)
        if tail is None:
            continue
        asked = [tail.join, tail.join + 1e-3, tail.join + 1, tail.join + 1e9, math.inf]
        found = [tail.p_value(score) for score in asked]
        assert found[0] == tail.mass
        assert sorted(found, reverse=True) == found
        assert found[-1] == LEAST
