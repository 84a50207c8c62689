"""Cross-fitting: each session is held back once, from a model that never saw it nor its neighbours in time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.calibration import Calibration
from detectors.crossfit import MOST_SESSIONS, is_worthwhile, raised_to, splits_by_time
from detectors.tail import JOIN


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 7))
def test_each_session_is_held_back_once_in_a_block_of_time(first_ms: list[int], folds: int) -> None:
    """No session has two parts; blocks have as many sessions, give or take one, and none lies within another."""
    times = np.array(first_ms, np.int64)
    found = list(splits_by_time(times, folds))
    assert len(found) == folds
    held = np.stack([split.calibrate for split in found])
    assert (held.sum(0) == 1).all()
    assert (np.diff(held.argmax(0)[np.argsort(times, kind="stable")]) >= 0).all()
    assert held.sum(1).max() - held.sum(1).min() <= 1
    for split in found:
        assert (split.learn.astype(int) + split.validate + split.calibrate == 1).all()
        assert split.validate.sum() == (~split.calibrate).sum() // 8


some_scores = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda drawn: np.array(drawn, np.float32))


@given(some_scores, some_scores)
def test_no_score_is_rarer_than_either_finds_it(scores: np.ndarray, own: np.ndarray) -> None:
    """Of each score at least the share of either reaches it, as far as counting tells; their order stays."""
    raised = raised_to(scores, own)
    assert (raised >= scores).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(raised[order]) >= 0).all()
    for score in range(8):
        mine, theirs = ((scores >= score).sum(), np.ceil((own >= score).mean() * len(scores) - 1e-9))
        assert (raised >= score).sum() == max(mine, theirs if theirs > JOIN else 0)


def test_the_promise_is_kept_where_a_model_fits_too_well() -> None:
    """A model that knows its sessions by heart alarms far too often if calibrated on them; cross-fitted it does not."""
    rng = np.random.default_rng(0)
    known, fresh = rng.normal(size=(600, 4)), rng.normal(size=(4_000, 4))

    def distance(to: np.ndarray, of: np.ndarray) -> np.ndarray:
        near = np.linalg.norm(of[:, None] - to[None], axis=2)
        return np.sort(near, axis=1)[:, 0].astype(np.float32)

    splits = splits_by_time(np.arange(600), 5)
    found = Calibration.learn(np.concatenate([distance(known[s.learn], known[s.calibrate]) for s in splits]))
    strange = distance(known, fresh)
    assert (Calibration.learn(distance(known, known)).p_values(strange) <= 0.05).mean() > 0.5
    assert 0.02 < (found.p_values(strange) <= 0.05).mean() < 0.075


def test_when_it_is_worth_the_trainings() -> None:
    """Where a fifth held back has under three expected alarms, and sessions are not too many."""
    assert is_worthwhile(14_999, 0.001, 0.2)
    assert not is_worthwhile(15_001, 0.001, 0.2)
    assert not is_worthwhile(MOST_SESSIONS + 1, 1e-9, 0.2)
