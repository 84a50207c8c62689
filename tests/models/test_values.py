"""Numbers in spreads: what is missing, what is far, and what stands for it, told alike in training and in serving."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.autoregression import CAP
from models.errors import BundleError
from models.forecast_kernels import hold
from models.values import FURTHEST, Values, held, told

ANY = st.floats(width=32) | st.sampled_from([np.nan, 0.0])
SESSION = st.integers(0, 20).flatmap(lambda n: arrays(np.float32, (n, 2), elements=ANY))


def some_values() -> Values:
    return Values.fit([np.array([[1.0, -4.0], [3.0, np.nan], [5.0, -4.0]])])


@given(SESSION)
def test_whatever_comes_is_in_spreads_or_missing(session: np.ndarray) -> None:
    """NaN where and only where a number is not finite; else its distance from the mean, bounded."""
    found = some_values().in_spreads(session)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), ~np.isfinite(session))
    assert np.nanmax(np.abs(found), initial=0) <= FURTHEST
    known = np.isfinite(session[:, 0])
    wanted = (session[known, 0].astype(np.float64) - 3.0) / np.sqrt(8 / 3)
    np.testing.assert_allclose(found[known, 0], np.clip(wanted, -FURTHEST, FURTHEST), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SESSION, st.lists(st.integers(0, 20), max_size=3).map(sorted))
def test_serving_holds_what_training_does(session: np.ndarray, cuts: list[int]) -> None:
    """A session in slices cut anywhere: after each record the last known values, and before it those before."""
    values, last = some_values().in_spreads(session), np.full((1, 2), np.nan, np.float32)
    known, before = [], []
    for low, high in zip([0, *cuts], [*cuts, len(values)], strict=True):
        n = max(0, min(high, len(values)) - low)
        found = np.empty((2, n, 2), np.float32)
        hold(
            np.zeros(n, np.int8), np.zeros(n, np.int32), np.arange(n, dtype=np.int32),
            np.arange(low, low + n) == 0, values[low : low + n], last, *found,
        )  # fmt: skip
        known.append(found[0])
        before.append(found[1])
    wanted = held(values)
    np.testing.assert_array_equal(np.concatenate(known), wanted)
    np.testing.assert_array_equal(np.concatenate(before), np.vstack([np.full((1, 2), np.nan), wanted])[: len(values)])
    naive: list[float] = []
    for value in values[:, 0].tolist():
        naive.append(value if not np.isnan(value) else naive[-1] if naive else np.nan)
    np.testing.assert_array_equal(wanted[:, 0], naive)


def test_what_a_model_is_given() -> None:
    """The last known value no further than CAP, 0 before the first; and which are missing."""
    values = np.array([[np.nan, 2.0], [50.0, np.nan], [np.nan, -50.0]], np.float32)
    found = told(values, held(values))
    np.testing.assert_array_equal(found, [[0, 2, 1, 0], [CAP, 2, 0, 1], [CAP, -CAP, 1, 0]])


def test_what_was_saved_is_read() -> None:
    """Arrays and back, among other weights."""
    values = some_values().knowing(usual=np.array([0.1, 0.2]), reach=np.array([0.5, 0.0]), unit=3.0)
    again = Values.from_arrays({**values.to_arrays(), "head.bias": np.zeros(1)}, 2)
    for name in ("mean", "spread", "usual", "reach", "unit"):
        np.testing.assert_array_equal(getattr(again, name), getattr(values, name))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("values.mean", None, "has no weight values.mean"),
        ("values.unit", np.array([1.0, 1.0]), "forecasts other numbers than the 2"),
        ("values.reach", np.zeros(3), "forecasts other numbers than the 2"),
        ("values.spread", np.array([1.0, 0.0]), "cannot be"),
        ("values.usual", np.array([1.0, np.nan]), "cannot be"),
        ("values.usual", np.array([1.0, -1.0]), "cannot be"),
        ("values.unit", np.array([0.0]), "cannot be"),
    ],
)
def test_what_cannot_be_is_refused(name: str, array: np.ndarray | None, said: str) -> None:
    """Missing, misshapen and impossible arrays are a sentence each."""
    arrays = {k: v for k, v in some_values().to_arrays().items() if k != name}
    if array is not None:
        arrays[name] = array
    with pytest.raises(BundleError, match=said):
        Values.from_arrays(arrays, 2)
