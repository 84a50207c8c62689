"""Every core: step equals forward, a state is all there is to know of the past, padding counts nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.family import SequenceModel, make_model
from models.sequences import IGNORED
from models.spec import CORES, ModelSpec, band, dilations, state_size
from models.training import Epoch, Sequence, TrainingOptions, pad, train

SIZES, INPUTS = (30, 5), (8,)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # of outputs, which are about 1
WINDOW = 9  # shorter than most sequences here, so that windows roll
clock = itertools.count().__next__


def model_of(core: str, hidden: int = 32, window: int = WINDOW) -> SequenceModel:
    """Untrained, with a start state that is not zero."""
    torch.manual_seed(hidden)
    model = make_model(ModelSpec(core, hidden, SIZES, INPUTS, window)).eval()
    with torch.no_grad():
        model.start.normal_()
    return model


def events(seed: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    tokens = np.stack([rng.integers(0, size, (batch, length)) for size in SIZES + INPUTS], -1)
    return torch.from_numpy(tokens), torch.from_numpy(rng.exponential(3, (batch, length)).astype(np.float32))


@pytest.mark.parametrize("hidden", [16, 64])
@pytest.mark.parametrize("window", [4, 9, 32])
@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_step_equals_forward_on_every_prefix(core: str, window: int, hidden: int) -> None:
    """After each of 70 events, one at a time: what the head reads, and the state of a prefix forwarded whole."""
    model = model_of(core, hidden, window)
    tokens, gaps = events(1, 3, 70)
    outputs, last = model(tokens, gaps, model.start_state(3))
    assert outputs.shape == (3, 70, hidden)
    state = model.start_state(3)
    for t in range(70):
        untouched = state.clone()
        after = model.step(tokens[:, t], gaps[:, t], state)
        assert torch.equal(state, untouched)
        state = after
        torch.testing.assert_close(state[:, :hidden], outputs[:, t], **TOLERANCE)
        if t in {0, 1, window - 1, window, 40}:
            prefix = model(tokens[:, : t + 1], gaps[:, : t + 1], model.start_state(3))[1]
            torch.testing.assert_close(state, prefix, **TOLERANCE)
    torch.testing.assert_close(state, last, **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(
    core=st.sampled_from(CORES), seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), data=st.data(),
)  # fmt: skip
@torch.no_grad()
def test_cut_anywhere_in_any_company(core: str, seed: int, lengths: list[int], data: st.DataObject) -> None:
    """Ragged rows in one batch, cut where you like and gone on with from their states, equal each row alone and whole.

    A row's state is that after its own last event, whatever padding follows it.
    """
    model, longest = model_of(core), max(lengths)
    tokens, gaps = events(seed, len(lengths), longest)
    cut = data.draw(st.lists(st.integers(0, longest), max_size=3).map(sorted))
    states, outputs = model.start_state(len(lengths)), torch.zeros(len(lengths), longest, 32)
    for low, high in itertools.pairwise([0, *cut, longest]):
        rows = [b for b, n in enumerate(lengths) if n > low]
        if high == low or not rows:
            continue
        real = torch.tensor([min(lengths[b], high) - low for b in rows])
        outputs[rows, low:high], states[rows] = model(tokens[rows, low:high], gaps[rows, low:high], states[rows], real)
    for b, n in enumerate(lengths):
        alone, state = model(tokens[b : b + 1, :n], gaps[b : b + 1, :n], model.start_state(1))
        torch.testing.assert_close(outputs[b, :n], alone[0], **TOLERANCE)
        torch.testing.assert_close(states[b], state[0], **TOLERANCE)


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_what_comes_later_changes_nothing(core: str) -> None:
    """Outputs know nothing of later events."""
    model = model_of(core)
    (tokens, gaps), (others, later) = events(2, 2, 20), events(3, 2, 20)
    changed = torch.cat([tokens[:, :12], others[:, 12:]], 1), torch.cat([gaps[:, :12], later[:, 12:]], 1)
    one, other = (model(*given, model.start_state(2))[0] for given in ((tokens, gaps), changed))
    torch.testing.assert_close(one[:, :12], other[:, :12], **TOLERANCE)
    assert (one[:, 12:] - other[:, 12:]).abs().max() > 0.01


@pytest.mark.parametrize("window", [4, 7, 32])
@pytest.mark.parametrize("core", ["transformer", "tcn"])
@torch.no_grad()
def test_the_window_is_all_that_counts(core: str, window: int) -> None:
    """A replay of the last W events from the start gives the state after the whole session; reach is about W."""
    model = model_of(core, window=window)
    tokens, gaps = events(4, 3, 90)
    whole = model(tokens, gaps, model.start_state(3))[1]
    replayed = model(tokens[:, -window:], gaps[:, -window:], model.start_state(3))[1]
    torch.testing.assert_close(whole, replayed, **TOLERANCE)
    reach = 2 * (band(window) - 1) + 1 if core == "transformer" else 1 + sum(dilations(window))
    assert window / 2 < reach <= window
    for back, counts in ((reach, False), (reach - 1, True)):
        other = tokens.clone()
        other[:, 89 - back] = (other[:, 89 - back] + 1) % 5
        moved = (model(other, gaps, model.start_state(3))[1][:, :32] - whole[:, :32]).abs().max()
        assert (moved > 1e-4) == counts


@pytest.mark.parametrize("core", CORES)
def test_a_state_is_as_large_as_is_said(core: str) -> None:
    """`state_size` is the width of what `forward` gives, and a learned vector is the first of it at the start."""
    for hidden, window in ((16, 4), (64, 32), (32, 100)):
        model = model_of(core, hidden, window)
        start = model.start_state(2)
        assert start.shape == (2, state_size(core, hidden, window, 3)) == model(*events(0, 2, 3), start)[1].shape
        torch.testing.assert_close(start[:, :hidden], model.start.expand(2, hidden))
        assert model.start.requires_grad
    assert state_size(core, 64, 32, 3) == {"gru": 64, "lstm": 128, "transformer": 193, "tcn": 2048}[core]


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_padding_never_changes_a_loss(core: str) -> None:
    """The loss of a ragged batch is the sum of its sessions' losses alone, and chunks change nothing."""
    model, rng = model_of(core), np.random.default_rng(5)

    def session(length: int, ended: bool) -> Sequence:
        tokens = np.stack([rng.integers(0, size, length) for size in SIZES + INPUTS], -1).astype(np.int32)
        return Sequence(tokens, rng.exponential(3, length).astype(np.float32), ended)

    def loss(batch: list[Sequence], chunk: int) -> float:
        tokens, gaps, targets = pad(batch, SIZES)
        state, total = model.start_state(len(batch)), 0.0
        for low in range(0, tokens.shape[1], chunk):
            part = slice(low, low + chunk)
            after, next_state = model(tokens[:, part], gaps[:, part], state)
            before = torch.cat([state[:, None, :32], after[:, :-1]], 1)
            total += float(model.nats(before, targets[:, part], IGNORED).sum())
            state = next_state
        return total

    batch = [session(3, True), session(41, True), session(12, False), session(1, True)]
    alone = sum(loss([s], 64) for s in batch)
    assert loss(batch, 64) == pytest.approx(alone, rel=1e-5)
    assert loss(batch, 7) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("core", CORES)
def test_it_learns_to_copy(core: str) -> None:
    """Three tokens at random, then the same three again: what repeats is learned, what is random is not."""
    rng = np.random.default_rng(6)

    def session() -> Sequence:
        said = rng.integers(2, 6, 3)
        return Sequence(np.tile(said, 2)[:, None].astype(np.int32), np.zeros(6, np.float32), ended=True)

    epochs: list[Epoch] = []
    options = TrainingOptions(max_epochs=30, patience=30, batch_tokens=256)
    spec = ModelSpec(core, 32, (6,), (), 12)
    train([session() for _ in range(600)], [session() for _ in range(80)], spec, options, epochs.append, clock)
    random = 3 * np.log(4) / 6  # nats an event that nobody can know
    assert random - 0.05 < min(e.validation_loss for e in epochs) < random + 0.1


@pytest.mark.parametrize("core", ["lstm", "transformer", "tcn"])
@torch.no_grad()
def test_dropout_is_for_training_only(core: str) -> None:
    """In training outputs differ from time to time, in serving they never do; without any they never do."""
    model = model_of(core)
    given = (*events(7, 2, 5), model.start_state(2))
    assert torch.equal(model(*given)[0], model(*given)[0])
    model.train()
    assert not torch.equal(model(*given)[0], model(*given)[0])
    still = make_model(model.spec, dropout=0).train()
    assert torch.equal(still(*given)[0], still(*given)[0])
