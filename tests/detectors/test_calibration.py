"""Calibration: p-values are valid, exact at the top, and never 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import calibration
from detectors.calibration import Calibration

scores_held_back = st.lists(st.floats(-100, 100, width=32), max_size=60)
any_scores = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)


def exact(held_back: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The conformal p-value by counting."""
    reached = (held_back[None, :] >= scores[:, None]).sum(axis=1)
    return np.asarray((1.0 + reached) / (1.0 + len(held_back)))


@given(scores_held_back, any_scores)
def test_small_calibrations_are_exact(held_back: list[float], scores: list[float]) -> None:
    """Nothing is thinned while there is little data: the p-value is the one counting gives, ties included."""
    asked = np.array(scores + held_back, np.float32)
    expected = exact(np.array(held_back, np.float32), asked)
    assert Calibration.learn(held_back).p_values(asked).tolist() == expected.tolist()


@given(st.integers(0, 2**32), st.integers(0, 400), st.sampled_from([0, 1, 3]), any_scores)
def test_thinned_calibrations_are_valid(seed: int, count: int, decimals: int, more: list[float]) -> None:
    """Thinned below the top, a p-value is never smaller than the exact one, exact at the top, monotone, never 0."""
    rng = np.random.default_rng(seed)
    held_back = np.round(rng.gamma(4, 1, count), decimals).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_EXACT", 16)
        patch.setattr(calibration, "_BULK", 8)
        learned = Calibration.learn(held_back)
    assert len(learned.levels) <= 24
    learned = replace(learned, tail=None)
    asked = np.sort(np.concatenate([held_back, rng.gamma(4, 1, 50).astype(np.float32), np.array(more, np.float32)]))
    found, expected = learned.p_values(asked), exact(held_back, asked)
    assert (found >= expected).all()
    assert (found <= 1.0).all()
    assert (found >= 1 / (1 + count)).all()
    assert (np.diff(found) <= 0).all()
    top = np.sort(held_back)[-16:]
    at_top = asked >= top[0] if count else np.ones(len(asked), np.bool_)
    assert found[at_top].tolist() == expected[at_top].tolist()


def test_a_large_calibration_is_close_everywhere() -> None:
    """With half a million scores the bulk is off by a two-thousandth of the data at most, the top exact, and small."""
    rng = np.random.default_rng(0)
    held_back = rng.gamma(4, 1, 500_000).astype(np.float32)
    learned = Calibration.learn(held_back)
    asked = rng.gamma(4, 1, 2_000).astype(np.float32)
    ordered = np.sort(held_back)
    expected = (1.0 + len(ordered) - np.searchsorted(ordered, asked, side="left")) / (1.0 + len(ordered))
    found = learned.p_values(asked)
    assert (found >= expected).all()
    assert (found - expected).max() < 1 / 2_000
    assert len(learned.levels) <= 8_192 + 2_048


def test_the_promise_is_kept_on_data_like_it() -> None:
    """Of fresh scores from the same distribution about the promised share is alarmed."""
    rng = np.random.default_rng(1)
    learned = Calibration.learn(rng.gamma(4, 1, 20_000))
    fresh = rng.gamma(4, 1, 20_000).astype(np.float32)
    for rate in (0.001, 0.01, 0.1):
        assert 0.6 * rate < (learned.p_values(fresh) <= rate).mean() < 1.5 * rate


def test_without_data_nothing_is_strange() -> None:
    """No held-back score: every p-value is 1, and no score stays none."""
    found = Calibration.learn([]).p_values(np.array([0.0, 1e30, np.inf, -np.inf, np.nan], np.float32))
    assert found[:4].tolist() == [1.0] * 4
    assert np.isnan(found[4])


def test_no_score_has_no_p_value() -> None:
    """NaN (no model yet) stays NaN, and infinity is as strange as can be."""
    found = Calibration.learn([1.0, 2.0, 3.0]).p_values(np.array([np.nan, np.inf], np.float32))
    assert np.isnan(found[0])
    assert found[1] == 0.25


def test_counting_goes_on_where_scores_are_few_or_discrete() -> None:
    """With a hundred scores, or a few distinct ones, there is no tail, and no p-value below 1 / (1 + n)."""
    rng = np.random.default_rng(3)
    for held_back in (rng.gamma(4, 1, 100), np.round(rng.gamma(4, 1, 5_000)), np.ones(5_000)):
        learned = Calibration.learn(held_back)
        assert learned.tail is None
        assert learned.p_values(np.array([1e9], np.float32)).tolist() == [1 / (1 + len(held_back))]


@given(st.integers(0, 2**32), st.integers(120, 600), any_scores)
def test_p_values_with_a_tail(seed: int, count: int, more: list[float]) -> None:
    """Exact where 15 scores reach, then a tail: never 0, never rising, the same bits in whatever array."""
    rng = np.random.default_rng(seed)
    held_back = rng.gamma(4, 1, count).astype(np.float32)
    learned = Calibration.learn(held_back)
    fifteenth = np.sort(held_back)[-15]
    asked = np.sort(np.concatenate([held_back, rng.gamma(9, 2, 40).astype(np.float32), np.array(more, np.float32)]))
    found = learned.p_values(asked)
    assert found[asked <= fifteenth].tolist() == exact(held_back, asked[asked <= fifteenth]).tolist()
    assert ((found > 0) & (found <= 1)).all()
    assert (np.diff(found) <= 0).all()
    assert [learned.p_values(asked[i : i + 1])[0] for i in range(len(asked))] == found.tolist()
    assert learned.p_values(asked[::-1]).tolist() == found[::-1].tolist()
    assert learned.p_values(asked[1::3]).tolist() == found[1::3].tolist()


@pytest.mark.parametrize("rate", [1e-3, 3e-4])
def test_a_tail_keeps_the_promise_with_few_scores(rate: float) -> None:
    """A thousand scores, an expected alarm or less among them: about the promised share, on average."""
    kept = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        learned = Calibration.learn(rng.standard_t(3, 1_000) ** 2)
        kept.append((learned.p_values((rng.standard_t(3, 200_000) ** 2).astype(np.float32)) <= rate).mean())
    assert 0.3 * rate < np.mean(kept) < 3 * rate


def test_what_is_vouched_for() -> None:
    """A tail vouches for one expected alarm, counting for three; what is asked beyond is said in a sentence."""
    rng = np.random.default_rng(4)
    smooth, few = Calibration.learn(rng.gamma(4, 1, 999)), Calibration.learn(rng.integers(0, 5, 999))
    assert (smooth.smallest_p_value, few.smallest_p_value) == (0.001, 0.003)
    assert smooth.supports(0.001)
    assert smooth.doubt(0.001, "records", 0.2) is None
    assert not few.supports(0.002)
    missed = (
        "999 records were held back for calibration, which vouch for p-values down to {}: the promise of {} may be "
    )
    assert (smooth.doubt(1e-4, "records", 0.2) or "").startswith(missed.format("0.001", "0.0001"))
    assert (few.doubt(0.002, "records", 0.2) or "").startswith(missed.format("0.003", "0.002"))
    never = few.doubt(1e-4, "records", 0.2) or ""
    assert "no record can reach a p-value below 0.001: with the promise of 0.0001 none will ever be an anomaly" in never
    assert "Train on about 150000 records" in never
    assert Calibration.learn([]).smallest_p_value == 1.0


@given(scores_held_back.filter(len), st.integers(0, 300))
def test_calibrations_are_saved_whole(held_back: list[float], seed: int) -> None:
    """Saved and read again, with a tail or without, a calibration gives the same p-values."""
    rng = np.random.default_rng(seed)
    for scores in (held_back, [*held_back, *rng.gamma(4, 1, 300)]):
        learned = Calibration.learn(scores)
        again = Calibration.from_arrays(learned.to_arrays("a.b"), "a.b")
        assert again.tail == learned.tail
        asked = np.array([*scores, 1e3, 1e6], np.float32)
        assert again.p_values(asked).tolist() == learned.p_values(asked).tolist()
    with pytest.raises(KeyError):
        Calibration.from_arrays({}, "records")
