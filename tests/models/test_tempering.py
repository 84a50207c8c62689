"""A model's heads are checked on sessions it never saw, and mended: probabilities are those that come true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.family import make_model
from models.sequences import Sequence, Sequences
from models.spec import ModelSpec
from models.tempering import temper

SPEC = ModelSpec("gru", 16, (6, 4))


def coins(seed: int, sessions: int) -> Sequences:
    """Both fields are drawn anew at each event: nothing but their frequencies can be known."""
    rng = np.random.default_rng(seed)
    return Sequences.of(
        Sequence(
            np.stack([rng.choice(4, 20, p=[0.6, 0.2, 0.1, 0.1]) + 2, rng.integers(2, 4, 20)], -1).astype(np.int32),
            np.zeros(20, np.float32), ended=False,
        )
        for _ in range(sessions)
    )  # fmt: skip


def too_sure() -> dict[str, np.ndarray]:
    """It knows the frequencies and believes in them three times too much; its state says nothing."""
    torch.manual_seed(0)
    model = make_model(SPEC)
    with torch.no_grad():
        model.head.weight.zero_()
        first = torch.log(torch.tensor([1e-6, 1e-6, 0.6, 0.2, 0.1, 0.1, 1e-6]))
        second = torch.log(torch.tensor([1e-6, 1e-6, 0.5, 0.5]))
        model.head.bias.copy_(torch.cat([first * 3, second]))
    return model.weights()


def test_a_head_that_is_too_sure_is_mended() -> None:
    """The temperature is what was wrong with the first field; its error falls, and so does its surprise."""
    weights = too_sure()
    mended, (first, second) = temper(weights, SPEC, coins(0, 400), 2, mends=True)
    assert first is not None
    assert second is not None
    assert first.temperature == pytest.approx(3, rel=0.1)
    assert first.error_before > 0.1
    assert first.error_after < 0.02
    assert first.nats_after < first.nats_before
    np.testing.assert_allclose(mended["head.bias"][:7], weights["head.bias"][:7] / first.temperature, rtol=1e-6)
    _, (again, _) = temper(mended, SPEC, coins(1, 400), 2, mends=True)
    assert again is not None
    assert again.temperature == pytest.approx(1, rel=0.1)


def test_looking_changes_nothing() -> None:
    """Without mending the weights are as they were; fields that are numbers are not looked at."""
    weights = too_sure()
    same, checks = temper(weights, SPEC, coins(0, 50), 1, mends=False)
    assert len(checks) == 1
    assert all((same[name] == weight).all() for name, weight in weights.items())


def test_a_softmax_of_classes_is_left_as_it_is() -> None:
    """One temperature cannot serve classes and ids at once."""
    spec = ModelSpec("gru", 16, (700, 4))
    weights = make_model(spec).weights()
    same, (first, second) = temper(weights, spec, coins(0, 50), 2, mends=True)
    assert first is None
    assert second is not None
    np.testing.assert_array_equal(same["head.weight"][:700], weights["head.weight"][:700])
