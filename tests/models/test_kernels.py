"""The serving kernel equals torch within a tolerance, and gives the same bits in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.family import SequenceModel, make_model
from models.runtime import GruKernel
from models.spec import ModelSpec

SIZES = (67, 5)


def gru(hidden: int, sizes: tuple[int, ...] = SIZES) -> SequenceModel:
    torch.manual_seed(hidden)
    model = make_model(ModelSpec("gru", hidden, sizes))
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(4)
    return model


def random_sessions(rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.stack([rng.integers(0, size, (batch, length)) for size in SIZES], -1)
    return tokens, rng.exponential(3, (batch, length)).astype(np.float32)


@pytest.mark.parametrize("hidden", [16, 32, 64, 128, 256])
def test_kernel_equals_torch_on_every_prefix(hidden: int) -> None:
    """States within 2e-6 and log-likelihoods within 2e-5 of `forward`, after each of 40 events; ends as well."""
    model, rng = gru(hidden), np.random.default_rng(1)
    kernel = GruKernel(model.weights(), SIZES)
    tokens, gaps = random_sessions(rng, 6, 40)
    with torch.no_grad():
        states, _ = model(torch.from_numpy(tokens), torch.from_numpy(gaps), model.start_state(6))
        before = torch.cat([model.start_state(6).unsqueeze(1), states[:, :-1]], 1)
        log_p = model.log_probabilities(before)
        end_log_p = model.log_probabilities(states)[0][..., -1]
    hidden_now = np.zeros((6, hidden), np.float32)
    rows = np.arange(6, dtype=np.int32)
    for t in range(40):
        kinds = np.array([0] * 6 + [1] * 6, np.int8)
        scores = kernel.score_and_step(
            kinds, np.tile(rows, 2), np.tile(rows, 2), np.full(6, t == 0), tokens[:, t].astype(np.int32), gaps[:, t],
            hidden_now,
        )  # fmt: skip
        hidden_now = scores.hidden
        np.testing.assert_allclose(scores.hidden, states[:, t], atol=2e-6)
        np.testing.assert_allclose(-scores.end_surprise[6:], end_log_p[:, t], atol=2e-5)
        for f in range(2):
            wanted = log_p[f][np.arange(6), t, tokens[:, t, f]]
            np.testing.assert_allclose(-scores.surprise[:, f], wanted, atol=2e-5)


def test_what_is_known_of_a_field_is_no_surprise() -> None:
    """Among some of its ids, a field's surprise is that of the id given these, less its mean; alone it is 0."""
    rng = np.random.default_rng(4)
    kernel = GruKernel(gru(16).weights(), SIZES)
    tokens, hidden = np.array([[1, 2], [0, 3]], np.int32), rng.normal(size=(2, 16)).astype(np.float32)
    which, kinds = np.arange(2, dtype=np.int32), np.zeros(2, np.int8)
    given = kinds, which, which, np.zeros(2, np.bool_), tokens, np.zeros(2, np.float32), hidden
    free = kernel.score_and_step(*given)
    known = kernel.score_and_step(*given, np.array([[[1, 4]], [[3, 4]]], np.int32))
    log_p = kernel.log_probabilities(hidden)[1][0]
    p = np.exp(log_p[1:4]) / np.exp(log_p[1:4]).sum()
    assert known.surprise[0, 1] == pytest.approx((p * np.log(p)).sum() - np.log(p[1]), abs=1e-5)
    assert known.surprise[1, 1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(known.surprise[:, 0], free.surprise[:, 0])
    np.testing.assert_array_equal(known.hidden, free.hidden)


def test_step_equals_forward() -> None:
    """Torch's own `step` after each event equals `forward` over the prefix."""
    model = gru(32)
    tokens, gaps = (torch.from_numpy(a) for a in random_sessions(np.random.default_rng(2), 4, 25))
    with torch.no_grad():
        (states, _), hidden = model(tokens, gaps, model.start_state(4)), model.start_state(4)
        for t in range(25):
            hidden = model.step(tokens[:, t], gaps[:, t], hidden)
            torch.testing.assert_close(hidden, states[:, t], atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9))
def test_a_row_has_the_same_bits_in_any_company(seed: int, rows: int) -> None:
    """Scored alone or among others, first or last, at any address: surprise, state and end are the same bits."""
    rng = np.random.default_rng(seed)
    kernel = GruKernel(gru(64).weights(), SIZES)
    n = 40
    row = rng.integers(0, rows, n).astype(np.int32)
    tokens = np.stack([rng.integers(0, size, n) for size in SIZES], -1).astype(np.int32)
    gaps, first = rng.exponential(3, n).astype(np.float32), np.zeros(n, np.bool_)
    hidden = rng.normal(size=(rows, 64)).astype(np.float32)
    kind, record = np.zeros(n, np.int8), np.arange(n, dtype=np.int32)
    together = kernel.score_and_step(kind, row, record, first, tokens, gaps, hidden)
    for r in range(rows):
        mine = np.flatnonzero(row == r)
        k = len(mine)
        alone = kernel.score_and_step(
            np.append(np.zeros(k, np.int8), np.int8(2)), np.zeros(k + 1, np.int32), np.arange(k + 1, dtype=np.int32),
            first[mine], tokens[mine], gaps[mine], hidden[r : r + 1],
        )  # fmt: skip
        np.testing.assert_array_equal(alone.surprise, together.surprise[mine])
        np.testing.assert_array_equal(alone.states[:k], together.states[mine])
        np.testing.assert_array_equal(alone.hidden[0], together.hidden[r])


def test_explained_probabilities_are_those_scored() -> None:
    """`log_probabilities` of a state agrees with the surprise scored under it, and each field sums to one."""
    kernel, rng = GruKernel(gru(32).weights(), SIZES), np.random.default_rng(3)
    tokens = np.array([[5, 2], [66, 0]], np.int32)
    scores = kernel.score_and_step(
        np.zeros(2, np.int8), np.array([0, 1], np.int32), np.array([0, 1], np.int32), np.zeros(2, np.bool_), tokens,
        np.zeros(2, np.float32), rng.normal(size=(2, 32)).astype(np.float32),
    )  # fmt: skip
    for f, log_p in enumerate(kernel.log_probabilities(scores.states)):
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(-log_p[[0, 1], tokens[:, f]], scores.surprise[:, f], atol=1e-5)


def test_extreme_states_stay_finite() -> None:
    """Huge weights give large but finite surprise, not NaN or infinity."""
    weights = gru(16).weights()
    weights["head.weight"] = weights["head.weight"] * np.float32(1e4)
    kernel = GruKernel(weights, SIZES)
    tokens = np.stack(np.meshgrid(np.arange(67), np.arange(5)), -1).reshape(-1, 2).astype(np.int32)
    n = len(tokens)
    scores = kernel.score_and_step(
        np.zeros(n, np.int8), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.bool_), tokens,
        np.full(n, 20, np.float32), np.zeros((1, 16), np.float32),
    )  # fmt: skip
    assert np.isfinite(scores.surprise).all()
    assert np.isfinite(scores.hidden).all()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("start", lambda w: w.pop("start")),
        ("finite", lambda w: w["head.bias"].__setitem__(0, np.nan)),
        ("vocabulary", lambda w: w.__setitem__("head.weight", w["head.weight"][:-1])),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, damage) -> None:
    """A missing, non-finite or misshapen weight is a `BundleError` with a sentence."""
    weights = {k: v.copy() for k, v in gru(16).weights().items()}
    damage(weights)
    with pytest.raises(BundleError, match=name):
        GruKernel(weights, SIZES)
