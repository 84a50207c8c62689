"""Training learns a grammar, is repeatable, and padding counts nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.errors import UnsuitableDataError
from models.family import make_model
from models.sequences import Sequence, pad
from models.spec import ModelSpec
from models.training import Epoch, TrainingOptions, loss_of, train

SIZES = (6,)
SPEC = ModelSpec("gru", 16, SIZES)
clock = itertools.count().__next__


def cycle(length: int, start: int = 0) -> Sequence:
    tokens = (np.arange(start, start + length) % 4 + 2).astype(np.int32)[:, None]
    return Sequence(tokens, np.ones(length, np.float32), ended=True)


def test_it_learns_a_cycle_and_its_end() -> None:
    """On sessions that always run 2 3 4 5 2 3 4 5 and end, the loss falls below a tenth of a nat per event."""
    epochs: list[Epoch] = []
    options = TrainingOptions(max_epochs=60, patience=60, batch_tokens=64)
    train([cycle(8)] * 80, [cycle(8)] * 10, SPEC, options, epochs.append, clock)
    assert epochs[0].loss > 1
    assert min(e.validation_loss for e in epochs) < 0.1


def test_same_seed_same_weights_other_seed_others() -> None:
    """The seed decides the weights, bit by bit."""
    data = [cycle(n % 7 + 3, n) for n in range(60)]

    def run(seed: int) -> dict[str, np.ndarray]:
        options = TrainingOptions(max_epochs=3, seed=seed)
        return train(data[:50], data[50:], SPEC, options, lambda _: None, clock)

    one, same, other = run(1), run(1), run(2)
    assert all((one[k] == same[k]).all() for k in one)
    assert any((one[k] != other[k]).any() for k in one)


def test_early_stopping_keeps_the_best_weights() -> None:
    """Training ends after `patience` epochs without progress, well before `max_epochs`."""
    rng = np.random.default_rng(0)
    noise = [Sequence(rng.integers(2, 6, (10, 1)).astype(np.int32), np.zeros(10, np.float32), True) for _ in range(40)]
    epochs: list[Epoch] = []
    train(noise[:30], noise[30:], SPEC, TrainingOptions(max_epochs=200), epochs.append, clock)
    assert len(epochs) < 200
    assert [e.best for e in epochs[-4:]] == [False] * 4


def test_padding_adds_nothing_to_a_loss() -> None:
    """The loss of a ragged batch is the sum of its sessions' losses alone."""
    torch.manual_seed(0)
    model = make_model(SPEC)

    def loss(batch: list[Sequence]) -> float:
        tokens, gaps, targets = pad(batch, SIZES)
        with torch.no_grad():
            after, _ = model(tokens, gaps, model.start_state(len(batch)))
            states = torch.cat([model.start_state(len(batch)).unsqueeze(1), after[:, :-1]], 1)
            return float(loss_of(model, states, targets))

    batch = [cycle(3), cycle(17), Sequence(cycle(5).tokens, cycle(5).log_gap, ended=False)]
    assert loss(batch) == pytest.approx(sum(loss([s]) for s in batch), rel=1e-5)


def test_no_sessions_is_refused() -> None:
    """Nothing to learn from is said in a sentence."""
    with pytest.raises(UnsuitableDataError, match="more data"):
        train([], [], SPEC, TrainingOptions(), lambda _: None, clock)
