"""A first bundle serves only where it predicts, and keeps its promise, on what it was not trained on."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import numpy as np
import pytest

from detectors.calibration import Calibration
from detectors.first_checks import Checked, check_first, most_by_chance
from detectors.fit import fit
from detectors.packing import unpack
from detectors.parts import Learned, Parts
from detectors.rows import RowShape
from features.events import Events
from features.sessions import SessionRules
from features.tokens import TokenEncoder
from models.bundle import Bundle
from models.gru_kernel import GruKernel
from models.spec import ModelSpec
from tests.conftest import CONTEXT, HIDDEN, MODEL, random_weights
from tests.kafka import shop_events
from tests.pipeline.test_outputs import DECODER, Given

Trained = tuple[Events, int, Learned, float]
UNLEARNED = Parts(
    "orders", "shop.orders", ("action", "status"), RowShape(HIDDEN, CONTEXT, 2), SessionRules(5_000, 12), 0.05,
    TokenEncoder(2, None), None, model=MODEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A history, the offset from which on nothing of it was trained on, a bundle's content, and its loss."""
    records = [Given(json.dumps(e).encode(), i) for i, e in enumerate(shop_events(3, 700))]
    history = DECODER.decode(records, check_key=False)
    cut = int(0.85 * len(history))
    fitted = fit([history.take(np.arange(cut))], UNLEARNED, 0, lambda _epoch: None, time.monotonic)
    learned = unpack(Bundle("a" * 64, fitted.content, fitted.files), UNLEARNED)
    return history, int(history.offsets[cut]), learned, fitted.content["training"]["best_validation_loss"]


def check(trained: Trained, **changes: Any) -> Checked:
    history, cut, learned, loss = trained
    learned = dataclasses.replace(learned, **changes)
    parts = dataclasses.replace(UNLEARNED, encoder=TokenEncoder(2, learned.vocabulary), learned=learned)
    return check_first([history], [cut], parts, loss)


def test_a_sound_bundle_passes(trained: Trained) -> None:
    """Trained on the beginning of a history, it beats frequencies at its end, and keeps its promise."""
    checked = check(trained)
    assert checked.refusals == []
    assert checked.figures["nats"] < checked.figures["nats_by_frequency"]
    assert checked.figures["sessions"] > 50


def test_one_that_alarms_too_often_is_refused(trained: Trained) -> None:
    """With a calibration that finds everything strange, records and sessions alarm beyond the promise."""
    checked = check(trained, records=Calibration.learn(np.zeros(1_000)), sessions=Calibration.learn(np.zeros(1_000)))
    assert len(checked.refusals) == 2
    assert all("and the promise of 0.05 allows" in why for why in checked.refusals)


def test_one_that_predicts_nothing_is_refused(trained: Trained) -> None:
    """Weights nobody trained predict worse than how often each token comes."""
    sizes = trained[2].vocabulary.sizes
    checked = check(trained, model=GruKernel(ModelSpec("gru", HIDDEN, sizes), random_weights(1, sizes, HIDDEN)))
    assert "it predicts no better than frequencies do" in checked.refusals[0]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float, trained: Trained) -> None:
    """A training whose validation loss is NaN or infinite made nothing that may serve."""
    history, cut, learned, _ = trained
    checked = check((history, cut, learned, loss))
    assert checked.refusals == [f"its validation loss is {loss}"]


def test_too_few_sessions_say_nothing(trained: Trained) -> None:
    """Where hardly any session began after the history that taught it, it is refused for that reason alone."""
    history, _, learned, loss = trained
    (why,) = check((history, int(history.offsets[-3]), learned, loss)).refusals
    assert "healthy sessions began and ended after those it learned from, of 20 wanted" in why


def test_most_by_chance_is_the_binomials_quantile() -> None:
    """Against a count of cases: of so many at that rate, more come in one of 1,000 draws at most."""
    rng = np.random.default_rng(1)
    for count, rate in ((50, 0.1), (1_000, 0.001), (7, 0.5), (3_000, 0.01)):
        most = most_by_chance(count, rate)
        drawn = rng.binomial(count, rate, 200_000)
        assert (drawn > most).mean() < 0.0016
        assert (drawn > most - 1).mean() > 0.0005
