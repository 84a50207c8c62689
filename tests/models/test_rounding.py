"""Weights as float16: near the original, refused where they do not fit, and their cost is what serving loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import UnsuitableDataError
from models.family import make_model
from models.rounding import loss_of_served, store_weights, to_float16, widened
from models.runtime import load_runtime
from models.sequences import IGNORED
from models.spec import CORES, ModelSpec
from models.training import Sequence, pad

SIZES = (9, 4)


def sessions(count: int) -> list[Sequence]:
    rng = np.random.default_rng(0)
    return [
        Sequence(
            np.stack([rng.integers(0, size, n) for size in SIZES], -1).astype(np.int32),
            rng.exponential(2, n).astype(np.float32), bool(rng.random() < 0.5),
        )
        for n in rng.integers(1, 20, count)
    ]  # fmt: skip


@pytest.mark.parametrize("core", CORES)
def test_the_served_loss_is_the_loss_of_training(core: str) -> None:
    """By whatever serves the core, in parts or not; the change is that of the rounded weights, and is small."""
    torch.manual_seed(1)
    model, given = make_model(ModelSpec(core, 16, SIZES, (), 8)).eval(), sessions(700)
    tokens, gaps, targets = pad(given, SIZES)
    with torch.no_grad():
        after, _ = model(tokens, gaps, model.start_state(len(given)))
        before = torch.cat([model.start_state(len(given))[:, None, :16], after[:, :-1]], 1)
        wanted = float(model.nats(before, targets, IGNORED).sum()) / sum(len(s.log_gap) for s in given)
    weights = model.weights()
    found = loss_of_served(load_runtime(model.spec, weights), model.spec, given)
    assert found == pytest.approx(wanted, rel=1e-4)
    stored, cost = store_weights(weights, "float16", model.spec, given)
    again = loss_of_served(load_runtime(model.spec, widened(stored)), model.spec, given)
    assert cost == {"float16_loss_change": pytest.approx(again - found, abs=1e-7)}
    assert 0 < abs(cost["float16_loss_change"]) < 1e-3
    same, nothing = store_weights(weights, "float32", model.spec, given)
    assert nothing == {}
    assert all((same[name] == weights[name]).all() for name in weights)


def test_half_the_bytes_and_near() -> None:
    """Each weight is within float16's half unit in the last place, in two bytes."""
    weights = {"a": np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)}
    stored = to_float16(weights)
    assert stored["a"].nbytes * 2 == weights["a"].nbytes
    assert widened(stored)["a"].dtype == np.float32
    np.testing.assert_allclose(widened(stored)["a"], weights["a"], rtol=2**-11, atol=2**-25)


def test_what_does_not_fit_is_refused() -> None:
    """A weight beyond float16 would become infinite."""
    with pytest.raises(UnsuitableDataError, match=r"a weight of 7e\+04 is too large for float16; write model.weights"):
        to_float16({"a": np.array([1.0, -7e4], np.float32)})
