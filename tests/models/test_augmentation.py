"""Training sequences made more like those to come."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.augmentation import delay_some


@given(length=st.integers(0, 60), seed=st.integers(0, 1_000), share=st.floats(0, 1), places=st.floats(0.1, 50))
def test_delays_lose_and_invent_nothing(length: int, seed: int, share: float, places: float) -> None:
    """The same events come, fields of one event stay together, and what tells of the time stays where it was."""
    rng = np.random.default_rng(seed)
    tokens = np.stack([rng.integers(0, 5, length), np.arange(length), np.arange(length)], -1).astype(np.int32)
    given_tokens = tokens.copy()
    delayed = delay_some(tokens, 2, rng, share, places)
    np.testing.assert_array_equal(tokens, given_tokens)
    np.testing.assert_array_equal(delayed[:, 2], tokens[:, 2])
    assert Counter(map(tuple, delayed[:, :2].tolist())) == Counter(map(tuple, tokens[:, :2].tolist()))


def test_a_fifth_comes_late_and_the_others_keep_their_order() -> None:
    """Those so late that they come last are a fifth, and before them all stand as they did; without any, all do."""
    tokens = np.arange(5_000, dtype=np.int32)[:, None]
    moved = delay_some(tokens, 1, np.random.default_rng(0), places=1e9)[:, 0]
    on_time = int(np.argmax(np.diff(moved) < 0)) + 1
    assert 0.78 < on_time / len(tokens) < 0.82
    assert (np.diff(moved[:on_time]) > 0).all()
    np.testing.assert_array_equal(delay_some(tokens, 1, np.random.default_rng(0), share=0.0), tokens)


def test_how_late_is_as_asked() -> None:
    """Of events that are late alone, by five places on average, those overtaken at all are by 5.5 (whole places)."""
    rng, tokens = np.random.default_rng(0), np.arange(200, dtype=np.int32)[:, None]
    places = [delay_some(tokens, 1, rng, share=1e-3, places=5.0)[:, 0] - tokens[:, 0] for _ in range(20_000)]
    overtaken = np.array([-moved.min() for moved in places if np.count_nonzero(moved < 0) == 1])
    assert 5.0 < overtaken.mean() < 6.0


def test_the_same_seed_delays_the_same() -> None:
    """Training must be repeatable."""
    tokens = np.arange(50, dtype=np.int32)[:, None]
    once, again = (delay_some(tokens, 1, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
