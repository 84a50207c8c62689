"""Cross-fitting: each session calibrates once, scored by a model that never saw it nor its neighbours in time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.calibration import Calibration
from detectors.crossfit import MOST_SESSIONS, Scores, cross_fit, folds_by_time, is_worthwhile


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 7))
def test_folds_are_blocks_of_time(first_ms: list[int], folds: int) -> None:
    """Every session has one fold; no fold has sessions before and after another's; sizes differ by one at most."""
    times = np.array(first_ms, np.int64)
    fold = folds_by_time(times, folds)
    in_time = fold[np.argsort(times, kind="stable")]
    assert (np.diff(in_time) >= 0).all()
    sizes = np.bincount(fold, minlength=folds)
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 1


@given(st.integers(0, 2**32), st.integers(10, 80))
def test_every_session_is_scored_once_by_others(seed: int, count: int) -> None:
    """Learners and scored never overlap and are all; the calibration is that of all scores in order of time."""
    rng = np.random.default_rng(seed)
    fold = folds_by_time(rng.integers(0, 1_000, count), 5)
    value = rng.gamma(4, 1, count).astype(np.float32)
    scored = np.zeros(count, np.int64)

    def learn_and_score(learn: np.ndarray, held: np.ndarray) -> Scores:
        assert (learn ^ held).all()
        scored[held] += 1
        strange = np.abs(value[held] - value[learn].mean())
        return Scores(np.repeat(strange, 2), strange)

    found = cross_fit(fold, learn_and_score)
    assert (scored == 1).all()
    expected = np.concatenate([np.abs(value[fold == f] - value[fold != f].mean()) for f in range(5)])
    asked = np.sort(expected)
    assert found.sessions.p_values(asked).tolist() == Calibration.learn(expected).p_values(asked).tolist()
    assert found.records.p_values(asked).tolist() == Calibration.learn(np.repeat(expected, 2)).p_values(asked).tolist()
    assert found.counts == tuple((2 * n, n) for n in np.bincount(fold, minlength=5).tolist())


def test_the_promise_is_kept_where_a_model_fits_too_well() -> None:
    """A model that knows its sessions by heart alarms far too often if calibrated on them; cross-fitted it does not."""
    rng = np.random.default_rng(0)
    known, fresh = rng.normal(size=(600, 4)), rng.normal(size=(4_000, 4))

    def distance(to: np.ndarray, of: np.ndarray) -> np.ndarray:
        near = np.linalg.norm(of[:, None] - to[None], axis=2)
        return np.sort(near, axis=1)[:, 0].astype(np.float32)

    found = cross_fit(
        folds_by_time(np.arange(600)),
        lambda learn, held: Scores(np.empty(0, np.float32), distance(known[learn], known[held])),
    )
    strange = distance(known, fresh)
    assert (Calibration.learn(distance(known, known)).p_values(strange) <= 0.05).mean() > 0.5
    assert 0.02 < (found.sessions.p_values(strange) <= 0.05).mean() < 0.075


def test_when_it_is_worth_the_trainings() -> None:
    """Where a fifth held back has under three expected alarms, and sessions are not too many."""
    assert is_worthwhile(14_999, 0.001, 0.2)
    assert not is_worthwhile(15_001, 0.001, 0.2)
    assert not is_worthwhile(MOST_SESSIONS + 1, 1e-9, 0.2)
