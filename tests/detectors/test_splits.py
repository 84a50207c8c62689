"""Splits: no session in two parts, and time runs from learning to calibration."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.splits import LEARN, split_by_time


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_every_session_is_in_one_part_and_time_runs_forward(times: list[int]) -> None:
    """Each session has one part, and no part begins before an earlier one ends."""
    first_ms = np.array(times, np.int64)
    split = split_by_time(first_ms)
    assert (split.learn.astype(int) + split.validate + split.calibrate == 1).all()
    assert split.learn.sum() == int(len(times) * LEARN)
    for earlier, later in (
        (split.learn, split.validate),
        (split.learn, split.calibrate),
        (split.validate, split.calibrate),
    ):
        if earlier.any() and later.any():
            assert first_ms[earlier].max() <= first_ms[later].min()
