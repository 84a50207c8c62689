"""Several cores as one: what each says counts by its p-value, and the whole is trained, saved and read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from detectors.calibration import Calibration
from detectors.ensemble import Ensemble, Member
from detectors.explanation import explain_record
from detectors.packing import unpack
from detectors.parts import Parts
from detectors.process import process_batch
from detectors.rows import PartitionState, SessionRows
from features.tokens import TokenEncoder
from models.bundle import read_bundle, write_bundle
from models.errors import BundleError
from models.runtime import Scores
from tests.conftest import HIDDEN, make_ensemble_parts
from tests.detectors.test_fit import history, train

CALIBRATION = Calibration.learn(np.random.default_rng(0).gamma(4, 1, 500))


class Says:
    """A core that finds fields as strange as it is told, and expects symbols with these probabilities."""

    name = "says"

    def __init__(self, surprise: list[list[float]], expects: tuple[float, ...] = (0.5, 0.5)) -> None:
        self.surprise, self.expects = np.array(surprise, np.float32), np.array(expects)

    def score_and_step(self, kind: np.ndarray, *given: np.ndarray | None) -> Scores:
        """Whatever comes; a state counts its slices."""
        hidden = given[5]
        assert hidden is not None
        ends = np.full(len(kind), 3.0, np.float32)
        return Scores(self.surprise, np.zeros((len(kind), 2), np.float32), ends, hidden + 1)

    def log_probabilities(self, states: np.ndarray) -> list[np.ndarray]:
        """Whatever the states."""
        assert states.shape[1] == 2
        return [np.log(np.tile(self.expects, (len(states), 1)))]


def asked(ensemble: Ensemble, n: int) -> Scores:
    """What an ensemble says of n events of one session, whatever they are."""
    none = np.zeros(n, np.int32)
    return ensemble.score_and_step(
        none.astype(np.int8), none, none, none.astype(np.bool_), none[:, None], none.astype(np.float32),
        np.zeros((1, 4), np.float32),
    )  # fmt: skip


pairs = st.lists(st.tuples(*[st.floats(0, 20, width=32)] * 4), min_size=1, max_size=12)


@settings(deadline=None)  # the first call compiles
@given(pairs)
def test_a_score_is_the_mean_of_minus_log_p_values(drawn: list[tuple[float, ...]]) -> None:
    """Its fields are shares of what the strangest finding says, and sum to it; states stand side by side."""
    members = [
        Member(Says([[a, b] for a, b, _, _ in drawn]), CALIBRATION, 2, 2),
        Member(Says([[c, d] for _, _, c, d in drawn]), CALIBRATION, 2, 2),
    ]
    scores = asked(Ensemble(members), len(drawn))
    top = float(CALIBRATION.levels[-1])
    for i, (a, b, c, d) in enumerate(drawn):
        totals = np.array([np.float32(a) + np.float32(b), np.float32(c) + np.float32(d)])
        strange = [
            math.log1p(max(float(total) - top, 0)) - math.log(p)
            for total, p in zip(totals, CALIBRATION.p_values(totals), strict=True)
        ]
        assert scores.surprise[i].sum() == pytest.approx(np.mean(strange), rel=1e-5, abs=1e-6)
        first, whole = (a, totals[0]) if strange[0] >= strange[1] else (c, totals[1])
        if whole > 0:
            assert scores.surprise[i, 0] == pytest.approx(np.mean(strange) * first / whole, rel=1e-4, abs=1e-6)
    assert scores.hidden.tolist() == [[1, 1, 1, 1]]
    assert scores.states.shape == (len(drawn), 4)


def test_what_it_expects_is_the_mean_of_what_its_members_do() -> None:
    """Also where one of them thinks it impossible."""
    ensemble = Ensemble([
        Member(Says([[1]], expects), CALIBRATION, 2, 2) for expects in ((0.9, 0.1), (0.5, 0.5))
    ])  # fmt: skip
    (found,) = ensemble.log_probabilities(np.zeros((3, 4), np.float32))
    assert_allclose(np.exp(found), [[0.7, 0.3]] * 3)


def test_scores_beyond_all_that_calibrates_keep_their_order() -> None:
    """A p-value by counting ends at 1 / (1 + n), and strangeness goes on."""
    flat = Calibration.learn(np.repeat(np.arange(5.0), 40))
    assert flat.tail is None
    strange = Member(Says([[1]]), flat, 2, 2).strangeness(np.array([3, 4, 5, 50, 5e30], np.float32))
    assert (np.diff(strange) > 0).all()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parts]:
    """A GRU and an LSTM, trained together and written."""
    whole = make_ensemble_parts()
    parts = replace(
        whole, fields=("action", "status"), shape=replace(whole.shape, hidden=3 * HIDDEN, numbers=0, counters=0),
        measures=type(whole.measures)(), ensemble=("lstm",), rate=0.05, learned=None, encoder=TokenEncoder(2, None),
    )  # fmt: skip
    fitted = train(parts, history(300))
    folder = tmp_path_factory.mktemp("bundles")
    return folder / write_bundle(folder, fitted.content, fitted.files, "2026-01-01T00:00:00Z"), parts


def test_an_ensemble_is_trained_saved_and_read_back(pair: tuple[Path, Parts]) -> None:
    """Both cores learn, from other start weights; the file says how; about the promised share is alarmed."""
    folder, parts = pair
    bundle = read_bundle(folder)
    assert bundle.content["schema"]["core"] == ["gru", "lstm"]
    (other,) = bundle.content["training"]["ensemble"]
    assert other["best_validation_loss"] == pytest.approx(bundle.content["training"]["best_validation_loss"], rel=0.2)
    learned = unpack(bundle, parts)
    assert isinstance(learned.runtime, Ensemble)
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    events = history(300, seed=2)[0]
    rows = SessionRows.empty(len(events.sessions), parts.shape)
    verdicts, _, _ = process_batch(events, rows, PartitionState(0), served)
    assert 0.01 < verdicts.anomaly.mean() < 0.1
    operation = int(verdicts.walk.of_events[int(np.argmax(verdicts.score))])
    said = explain_record(verdicts, operation, rows, served)
    assert sum(said["contributions"].values()) == pytest.approx(float(verdicts.score.max()), rel=1e-5)
    assert sum(e["probability"] for e in said["expected"]["action"]) > 0.5


def test_another_ensemble_is_refused(pair: tuple[Path, Parts]) -> None:
    """A config with one core, or another beside it, says what differs."""
    folder, parts = pair
    for ensemble in ((), ("gru",), ("lstm", "gru")):
        with pytest.raises(BundleError, match=r"was trained with core \['gru', 'lstm'\], but the config says core"):
            unpack(read_bundle(folder), replace(parts, ensemble=ensemble))


def test_parts_of_a_score_are_no_larger_than_it() -> None:
    """A field less strange than usual takes nothing from the others, also where the sum is next to nothing."""
    member = Member(Says([[3.1, -3.0999997], [-1.0, -2.0], [0.5, 1.5]]), CALIBRATION, 2, 2)
    surprise = asked(Ensemble([member]), 3).surprise
    strange = member.strangeness(np.array([3.1 - 3.0999997, -3, 2], np.float32))
    assert_allclose(surprise.sum(axis=1), strange, rtol=1e-5)
    assert (surprise >= 0).all()
    assert surprise[0, 1] == 0
    assert surprise[1, 0] == surprise[1, 1]
