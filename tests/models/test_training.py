"""Training learns a grammar, is repeatable, and padding counts nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import UnsuitableDataError
from models.family import make_model
from models.sequences import IGNORED, Sequence, pad
from models.spec import ModelSpec
from models.training import Epoch, Progress, TrainingOptions, train

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
            return float(model.nats(states, targets, IGNORED).sum())

    batch = [cycle(3), cycle(17), Sequence(cycle(5).tokens, cycle(5).log_gap, ended=False)]
    assert loss(batch) == pytest.approx(sum(loss([s]) for s in batch), rel=1e-5)


def test_no_sessions_is_refused() -> None:
    """Nothing to learn from is said in a sentence."""
    with pytest.raises(UnsuitableDataError, match="more data"):
        train([], [], SPEC, TrainingOptions(), lambda _: None, clock)


def test_bad_sessions_are_left_out_of_the_gradient() -> None:
    """A tenth of the sessions run backwards: told so, training leaves just these out, and finds them far stranger."""
    good = [cycle(8, n % 4) for n in range(90)]
    bad = [Sequence(s.tokens[::-1].copy(), s.log_gap, ended=True) for s in good[:10]]

    def strangeness(contamination: float) -> tuple[float, list[Epoch]]:
        epochs: list[Epoch] = []
        options = TrainingOptions(max_epochs=30, patience=30, batch_tokens=128, contamination=contamination)
        weights = train([*good, *bad], good[:20], SPEC, options, epochs.append, clock)
        model = make_model(SPEC)
        model.load_weights(weights)
        tokens, gaps, targets = pad(bad, SIZES)
        with torch.no_grad():
            after, _ = model(tokens, gaps, model.start_state(len(bad)))
            states = torch.cat([model.start_state(len(bad)).unsqueeze(1), after[:, :-1]], 1)
            return float(model.nats(states, targets, IGNORED).sum()) / 80, epochs

    (plain, before), (robust, epochs) = strangeness(0.0), strangeness(0.1)
    assert [e.left_out for e in epochs] == [0] * 3 + [10] * 27
    assert robust > 1.5 * plain
    assert epochs[-1].loss < before[-1].loss


def test_the_gradient_and_the_rate_are_told() -> None:
    """Each epoch tells its steps' mean gradient, which share of them was clipped, and the rate it ended with."""
    epochs: list[Epoch] = []
    options = TrainingOptions(max_epochs=20, batch_tokens=64, least_steps=1, warm_up=5)
    wide = [replace(s, tokens=np.repeat(s.tokens, 4, axis=1)) for s in (cycle(8), cycle(6, 1))] * 40
    train(wide, wide[:10], ModelSpec("gru", 16, SIZES * 4), options, epochs.append, clock)
    assert all(e.gradient_norm > 0 and 0 <= e.clipped <= 1 for e in epochs)
    assert epochs[0].gradient_norm > 1 > epochs[-1].gradient_norm
    assert epochs[0].clipped > epochs[-1].clipped
    assert epochs[0].learning_rate == options.learning_rate


def test_progress_runs_from_batch_to_batch() -> None:
    """It only ever grows, ends at the epochs there were, and has the time that is left at most."""
    seen: list[Progress] = []
    options = TrainingOptions(max_epochs=3, batch_tokens=64, least_steps=1)
    train([cycle(8)] * 80, [cycle(8)] * 10, SPEC, options, lambda _: None, clock, watch=seen.append)
    done = [p.epochs for p in seen]
    assert done == sorted(done)
    assert len(done) > 3 * 5
    assert (done[-1], seen[-1].of, seen[-1].seconds_left) == (3, 3, 0)
    assert all(p.events_per_s > 0 and np.isfinite(p.loss) for p in seen)


@pytest.mark.parametrize("options", [{"by_square_root": True}, {"delayed": 0.5}])
def test_drawing_and_delaying_still_learn_and_repeat(options: dict[str, Any]) -> None:
    """Both change the weights, bit by bit the same for a seed, and a cycle is still learned."""
    data = [cycle(8)] * 60 + [cycle(5, 1)] * 4

    def run(**extra: Any) -> tuple[dict[str, np.ndarray], list[Epoch]]:
        epochs: list[Epoch] = []
        given = TrainingOptions(max_epochs=8, batch_tokens=64, least_steps=1, **extra)
        return train(data, data[-20:], SPEC, given, epochs.append, clock), epochs

    (one, epochs), (same, _), (plain, _) = run(**options), run(**options), run()
    assert all((one[k] == same[k]).all() for k in one)
    assert any((one[k] != plain[k]).any() for k in one)
    assert epochs[-1].validation_loss < epochs[0].validation_loss
