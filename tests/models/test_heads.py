"""Softmaxes with classes: normalised exactly, the same in torch and in the kernel, and as bitwise as flat ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.family import SequenceModel, make_model
from models.gru_kernel import GruKernel
from models.heads import log_probabilities
from models.kernels import LATE, STEP
from models.runtime import Scores
from models.spec import LARGE, ModelSpec
from models.torch_runtime import TorchRuntime

END = 2


def spec_of(sizes: tuple[int, ...], *, flat: bool = False) -> ModelSpec:
    return ModelSpec("gru", 16, sizes, flat=flat)


def model_of(sizes: tuple[int, ...], *, flat: bool = False) -> SequenceModel:
    torch.manual_seed(len(sizes))
    model = make_model(spec_of(sizes, flat=flat))
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(6)
    return model


@settings(max_examples=60, deadline=None)
@given(ids=st.integers(2, 300), width=st.integers(1, 40), seed=st.integers(0, 1_000))
def test_two_levels_are_what_they_say(ids: int, width: int, seed: int) -> None:
    """By the definition, id by id; all ids together have probability 1."""
    classes = -(-ids // width)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (2, classes + ids)))
    found = log_probabilities(logits, width).numpy()
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-12)
    for row, columns in zip(found, logits.numpy(), strict=True):
        for symbol in range(ids):
            which = symbol // width
            mine = columns[classes + which * width : classes + min((which + 1) * width, ids)]
            p_class = np.exp(columns[which]) / np.exp(columns[:classes]).sum()
            p_given = np.exp(columns[classes + symbol]) / np.exp(mine).sum()
            assert row[symbol] == pytest.approx(np.log(p_class * p_given), abs=1e-9)


def test_a_head_has_classes_from_a_size_on() -> None:
    """Up to 500 symbols, the first field's end among them, none; beyond, about the root of their number."""
    for size, classes in ((LARGE - 1, 0), (LARGE, 22), (10_003, 100)):
        spec = ModelSpec("gru", 16, (size, 40))
        assert spec.symbols == (size + 1, 40)
        assert spec.head_widths == (size + 1 + classes, 40)
        assert ModelSpec("gru", 16, (size, 40), flat=True).head_widths == (size + 1, 40)
    assert ModelSpec("gru", 16, (7, LARGE + 1)).class_widths == (0, 23)


@pytest.mark.parametrize("sizes", [(40, 7), (700, 5), (5, 1_100)])
def test_nats_are_minus_log_probabilities(sizes: tuple[int, ...]) -> None:
    """With gradients; targets that are ignored add nothing to either."""
    model, rng = model_of(sizes), np.random.default_rng(2)
    outputs = torch.from_numpy(rng.normal(size=(3, 50, 16)).astype(np.float32))
    targets = torch.from_numpy(np.stack([rng.integers(0, n, (3, 50)) for n in model.spec.symbols], -1))
    targets[0, :20], targets[1, 3:9, 0] = -100, -100
    found = model.nats(outputs, targets, -100)
    wanted = sum(
        torch.nn.functional.nll_loss(part.flatten(0, 1), targets[..., f].flatten(), reduction="none").view(3, 50)
        for f, part in enumerate(model.log_probabilities(outputs))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
    mine, theirs = (torch.autograd.grad(loss.sum(), list(model.head.parameters())) for loss in (found, wanted))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def operations(sizes: tuple[int, ...], seed: int, rows: int, count: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    kind = rng.choice([STEP, STEP, STEP, LATE, END], count).astype(np.int8)
    n = int((kind != END).sum())
    tokens = np.stack([rng.integers(0, size, n) for size in sizes], -1).reshape(n, len(sizes)).astype(np.int32)
    tokens[: n // 2, 0] = sizes[0] - 1  # of the last class, which has fewer ids and the end
    record = np.cumsum(kind != END) - 1
    return (
        kind, rng.integers(0, rows, count).astype(np.int32), record.astype(np.int32), rng.random(n) < 0.2, tokens,
        rng.exponential(2, n).astype(np.float32), rng.normal(size=(rows, 16)).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(LARGE,), (1_300, 5), (5, 2_000, 7), (1_023, 3, 10_003)])
def test_kernel_equals_torch(sizes: tuple[int, ...]) -> None:
    """Events, ends and explanations, wherever fields with classes stand among others."""
    weights = model_of(sizes).weights()
    kernel, runtime = GruKernel(spec_of(sizes), weights), TorchRuntime(spec_of(sizes), weights)
    given = operations(sizes, 1, 4, 120)
    mine, theirs = kernel.score_and_step(*given), runtime.score_and_step(*given)
    for part in ("surprise", "states", "end_surprise", "hidden"):
        np.testing.assert_allclose(getattr(mine, part), getattr(theirs, part), atol=1e-4)
    for own, other in zip(kernel.log_probabilities(mine.states), runtime.log_probabilities(mine.states), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)
        np.testing.assert_allclose(np.exp(own).sum(1), 1, rtol=1e-4)
    ends = given[0] == END
    np.testing.assert_allclose(-kernel.log_probabilities(mine.states)[0][ends, -1], mine.end_surprise[ends], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6))
def test_a_row_has_the_same_bits_in_any_company(seed: int, rows: int) -> None:
    """With classes too: alone or among others, surprise, state and end are the same bits."""
    sizes = (1_100, 4, 1_500)
    kernel, given = GruKernel(spec_of(sizes), model_of(sizes).weights()), operations((1_100, 4, 1_500), seed, rows, 40)
    together = kernel.score_and_step(*given)
    kind, row, record, first, tokens, gaps, hidden = given
    for r in range(rows):
        mine = np.flatnonzero(row == r)
        ids = record[mine][kind[mine] != END]
        alone: Scores = kernel.score_and_step(
            kind[mine], np.zeros(len(mine), np.int32), (np.cumsum(kind[mine] != END) - 1).astype(np.int32), first[ids],
            tokens[ids], gaps[ids], hidden[r : r + 1],
        )  # fmt: skip
        np.testing.assert_array_equal(alone.surprise, together.surprise[ids])
        np.testing.assert_array_equal(alone.states, together.states[mine])
        np.testing.assert_array_equal(alone.end_surprise, together.end_surprise[mine])
        np.testing.assert_array_equal(alone.hidden[0], together.hidden[r])


def test_flat_heads_of_before_are_served() -> None:
    """Weights without classes serve where they are said to be flat, and are refused where they are not."""
    sizes = (1_200, 3)
    model = model_of(sizes, flat=True)
    kernel = GruKernel(model.spec, model.weights())
    states = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    with torch.no_grad():
        wanted = model.log_probabilities(torch.from_numpy(states))
    for found, part in zip(kernel.log_probabilities(states), wanted, strict=True):
        np.testing.assert_allclose(found, part, atol=2e-5)
    with pytest.raises(BundleError, match="do not fit its vocabulary"):
        GruKernel(spec_of(sizes), model.weights())
