"""The serving kernels equal torch within a tolerance, and give the same bits in any company."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.family import SequenceModel, make_model
from models.kernels import ADVANCE, LATE, STEP
from models.runtime import Runtime, Scores, make_kernel
from models.spec import KERNELS, ModelSpec
from models.tcn_kernel import AT_ONCE
from tests.models.drawn import END, draw_operations

SIZES, INPUTS, CHANNELS, WINDOW = (67, 600, 5), (8,), 2, 9  # the second with classes; windows shorter than sessions
# Of what heads read and rows hold, and of nats: layer norms and four products a block add up more roundings.
TOLERANCES = {"gru": (2e-6, 2e-5), "lstm": (2e-6, 2e-5), "tcn": (2e-5, 5e-5)}

Operations = tuple[np.ndarray, ...]


def spec_of(core: str, hidden: int = 32, window: int = WINDOW) -> ModelSpec:
    return ModelSpec(core, hidden, SIZES, INPUTS, window, values=CHANNELS)


def model_of(spec: ModelSpec) -> SequenceModel:
    """Of a model nobody trained, sure of itself and with a start state that is not zero."""
    torch.manual_seed(spec.hidden)
    model = make_model(spec).eval()
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(4)
    return model


def kernel_of(spec: ModelSpec) -> Runtime:
    return make_kernel(spec, model_of(spec).weights())


def events(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, gaps, and numbers as `models.values.told` gives them: some 0, as of what is missing."""
    tokens = np.stack([rng.integers(0, size, shape) for size in SIZES + INPUTS], -1).astype(np.int32)
    told = rng.normal(size=(*shape, 2 * CHANNELS)).astype(np.float32)
    return tokens, rng.exponential(3, shape).astype(np.float32), np.where(rng.random(told.shape) < 0.3, 0, told)


def slice_of(seed: int, rows: int, count: int, spec: ModelSpec) -> tuple[Operations, np.ndarray]:
    """Operations as `score_and_step` is given them but for the rows, and rows: all kinds, at random.

    Half of all fall on row 0, so that a run of events is longer than a TCN takes at once.
    """
    rng = np.random.default_rng(seed)
    kind, row, record, first = (np.array(a) for a in draw_operations(rng, rng.random(rows) < 0.5, count, hot=0.5))
    kind[(kind == STEP) & (rng.random(len(kind)) < 0.1)] = ADVANCE
    tokens, gaps, told = events(rng, len(first))
    among = np.zeros((len(first), 1, 2), np.int32)
    among[:, 0, 1] = tokens[:, 2] + 1 + rng.integers(0, 2, len(first)) * (4 - tokens[:, 2])
    given = (
        kind.astype(np.int8), row.astype(np.int32), record.astype(np.int32), first.astype(np.bool_), tokens, gaps,
        among, told.astype(np.float32),
    )  # fmt: skip
    return given, rng.normal(size=(rows, spec.core_state)).astype(np.float32)


def run(kernel: Runtime, given: Operations, hidden: np.ndarray) -> Scores:
    return kernel.score_and_step(*given[:6], hidden, given[6], given[7])


def taken(given: Operations, which: np.ndarray, row: np.ndarray) -> tuple[Operations, np.ndarray]:
    """Some of the operations as a slice of their own, on other rows; and which records they have."""
    kind, _, record, *of_events = given
    has_event = kind[which] != END
    mine = record[which][has_event]
    numbered = np.maximum(np.cumsum(has_event) - 1, 0).astype(np.int32)
    return (kind[which], row.astype(np.int32), numbered, *(part[mine] for part in of_events)), mine


@pytest.mark.parametrize("hidden", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("core", KERNELS)
def test_kernel_equals_torch_on_every_prefix(core: str, hidden: int) -> None:
    """After each of 40 events: states, rows, surprises, late ones and ends, within a tolerance."""
    model = model_of(spec_of(core, hidden))
    kernel, (of_states, of_nats) = make_kernel(model.spec, model.weights()), TOLERANCES[core]
    tokens, gaps, told = events(np.random.default_rng(1), 6, 40)
    ids, given = torch.from_numpy(tokens.astype(np.int64)), (torch.from_numpy(gaps), torch.from_numpy(told))
    with torch.no_grad():
        states, _ = model(ids, given[0], model.start_state(6), values=given[1])
        before = torch.cat([model.start.expand(6, 1, hidden), states[:, :-1]], 1)
        log_p, end_log_p = model.log_probabilities(before), model.log_probabilities(states)[0][..., -1]
    rows, hidden_now = np.arange(6, dtype=np.int32), np.full((6, model.state_size), 7, np.float32)
    for t in range(40):
        kinds = np.repeat(np.array([LATE, STEP, END], np.int8), 6)
        scores = kernel.score_and_step(
            kinds, np.tile(rows, 3), np.tile(rows, 3), np.full(6, t == 0), tokens[:, t], gaps[:, t], hidden_now,
            numbers=told[:, t],
        )  # fmt: skip
        hidden_now = scores.hidden
        np.testing.assert_allclose(scores.states[6:12], before[:, t], atol=of_states)
        np.testing.assert_array_equal(scores.states[:6], scores.states[6:12])
        np.testing.assert_allclose(scores.hidden[:, :hidden], states[:, t], atol=of_states)
        np.testing.assert_allclose(-scores.end_surprise[12:], end_log_p[:, t], atol=of_nats)
        for f in range(len(SIZES)):
            wanted = log_p[f][np.arange(6), t, tokens[:, t, f]]
            np.testing.assert_allclose(-scores.surprise[:, f], wanted, atol=of_nats)
        if t in {0, 1, WINDOW - 1, WINDOW, 39}:
            with torch.no_grad():
                parts = ids[:, : t + 1], given[0][:, : t + 1], model.start_state(6)
                _, row = model(*parts, values=given[1][:, : t + 1])
            np.testing.assert_allclose(scores.hidden, row, atol=of_states)


@pytest.mark.parametrize("window", [4, 32, 100])
def test_a_tcn_of_any_window(window: int) -> None:
    """All events of a session in one slice, of which the kernel takes a part at once: what `forward` gives of each."""
    model = model_of(spec_of("tcn", 16, window))
    kernel, rng = make_kernel(model.spec, model.weights()), np.random.default_rng(window)
    for count in (1, 3, AT_ONCE, AT_ONCE + 1, 4 * AT_ONCE + 7):
        tokens, gaps, told = events(rng, count)
        first = np.arange(count) == 0
        scores = kernel.score_and_step(
            np.zeros(count, np.int8), np.zeros(count, np.int32), np.arange(count, dtype=np.int32), first, tokens, gaps,
            np.ones((1, model.state_size), np.float32), numbers=told,
        )  # fmt: skip
        with torch.no_grad():
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            given = torch.from_numpy(gaps)[None], model.start_state(1)
            outputs, row = model(ids, *given, values=torch.from_numpy(told)[None])
        np.testing.assert_allclose(scores.states[1:], outputs[0, :-1], atol=2e-5)
        np.testing.assert_allclose(scores.hidden, row, atol=2e-5)


@pytest.mark.parametrize("core", KERNELS)
def test_what_is_known_of_a_field_is_no_surprise(core: str) -> None:
    """Among some of its ids, a field's surprise is that of the id given these, less its mean; alone it is 0."""
    rng = np.random.default_rng(4)
    kernel = kernel_of(spec_of(core))
    tokens, gaps, told = events(rng, 2)
    tokens[:, 2] = (2, 3)
    hidden = rng.normal(size=(2, spec_of(core).core_state)).astype(np.float32)
    which = np.arange(2, dtype=np.int32)
    given = np.zeros(2, np.int8), which, which, np.zeros(2, np.bool_), tokens, gaps, hidden
    free = kernel.score_and_step(*given, numbers=told)
    known = kernel.score_and_step(*given, np.array([[[1, 4]], [[3, 4]]], np.int32), told)
    log_p = kernel.log_probabilities(free.states)[2][0]
    p = np.exp(log_p[1:4]) / np.exp(log_p[1:4]).sum()
    assert known.surprise[0, 2] == pytest.approx((p * np.log(p)).sum() - np.log(p[1]), abs=1e-5)
    assert known.surprise[1, 2] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(known.surprise[:, :2], free.surprise[:, :2])
    np.testing.assert_array_equal(known.hidden, free.hidden)


@settings(max_examples=90, deadline=None)
@given(core=st.sampled_from(KERNELS), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), count=st.integers(1, 150))
def test_a_row_has_the_same_bits_in_any_company(core: str, seed: int, rows: int, count: int) -> None:
    """Scored alone or among others, first or last, at any address: surprise, state and end are the same bits."""
    spec = spec_of(core, 64)
    kernel, (given, hidden) = kernel_of(spec), slice_of(seed, rows, count, spec)
    together = run(kernel, given, hidden)
    for r in range(rows):
        mine = np.flatnonzero(given[1] == r)
        own, ids = taken(given, mine, np.zeros(len(mine)))
        alone = run(kernel, own, hidden[r : r + 1])
        np.testing.assert_array_equal(alone.surprise, together.surprise[ids])
        np.testing.assert_array_equal(alone.states, together.states[mine])
        np.testing.assert_array_equal(alone.end_surprise, together.end_surprise[mine])
        np.testing.assert_array_equal(alone.hidden[0], together.hidden[r])


@settings(max_examples=90, deadline=None)
@given(
    core=st.sampled_from(KERNELS), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), count=st.integers(1, 150),
    cuts=st.lists(st.integers(0, 150), max_size=12), spare=st.integers(0, 3),
)  # fmt: skip
def test_any_slicing_and_restoring_gives_the_same_bits(
    core: str, seed: int, rows: int, count: int, cuts: list[int], spare: int
) -> None:
    """Cut anywhere, rows saved as bytes and read back in between, beside what lies beyond the model's state."""
    spec = spec_of(core)
    kernel, (given, hidden) = kernel_of(spec), slice_of(seed, rows, count, spec)
    hidden = np.hstack([hidden, np.full((rows, spare), 3, np.float32)])
    whole, now = run(kernel, given, hidden), hidden
    for low, high in itertools.pairwise([0, *sorted(min(cut, len(given[0])) for cut in cuts), len(given[0])]):
        part = np.arange(low, high)
        own, ids = taken(given, part, given[1][part])
        scores = run(kernel, own, now)
        np.testing.assert_array_equal(scores.surprise, whole.surprise[ids])
        np.testing.assert_array_equal(scores.states, whole.states[part])
        np.testing.assert_array_equal(scores.end_surprise, whole.end_surprise[part])
        now = np.frombuffer(scores.hidden.tobytes(), np.float32).reshape(hidden.shape)
    np.testing.assert_array_equal(now, whole.hidden)
    np.testing.assert_array_equal(now[:, spec.core_state :], 3)


@pytest.mark.parametrize("core", KERNELS)
def test_what_only_advances_steps_as_what_is_scored(core: str) -> None:
    """The same rows and states, and no surprise; what is only scored leaves rows as they are."""
    spec = spec_of(core)
    kernel, (given, hidden) = kernel_of(spec), slice_of(5, 4, 120, spec)
    untouched = hidden.copy()
    kind = np.where(given[0] == ADVANCE, STEP, given[0]).astype(np.int8)
    scored = run(kernel, (kind, *given[1:]), hidden)
    advanced = run(kernel, (np.where(kind == STEP, ADVANCE, kind).astype(np.int8), *given[1:]), hidden)
    np.testing.assert_array_equal(scored.hidden, advanced.hidden)
    np.testing.assert_array_equal(scored.states, advanced.states)
    late = np.zeros(len(given[4]), np.bool_)
    late[given[2][kind == LATE]] = True
    np.testing.assert_array_equal(advanced.surprise[late], scored.surprise[late])
    assert not advanced.surprise[~late].any()
    only = run(kernel, (np.full_like(kind, LATE), *given[1:]), hidden)
    np.testing.assert_array_equal(only.hidden, untouched)
    np.testing.assert_array_equal(hidden, untouched)


@pytest.mark.parametrize("core", KERNELS)
def test_only_states_that_are_whole_rows_resume(core: str) -> None:
    """A row may begin with a state that was told where it goes on as the row itself would; else it says so."""
    spec = spec_of(core)
    kernel, (given, hidden) = kernel_of(spec), slice_of(6, 1, 30, spec)
    steps, _ = taken(given, np.flatnonzero(given[0] == STEP)[:12], np.zeros(12))
    steps = (*steps[:3], np.zeros(12, np.bool_), *steps[4:])
    whole = run(kernel, steps, hidden)
    rest, _ = taken(steps, np.arange(6, 12), np.zeros(6))
    row = np.zeros_like(hidden)
    row[:, : spec.hidden] = whole.states[6]
    assert kernel.resumes == np.array_equal(run(kernel, rest, row).surprise, whole.surprise[6:])


@pytest.mark.parametrize("core", KERNELS)
def test_explained_probabilities_are_those_scored(core: str) -> None:
    """`log_probabilities` of a state agrees with the surprise scored under it, and each field sums to one."""
    spec = spec_of(core)
    kernel, (given, hidden) = kernel_of(spec), slice_of(3, 3, 40, spec)
    scores = kernel.score_and_step(*given[:6], hidden, numbers=given[7])  # without ranges
    scored = np.isin(given[0], [STEP, LATE])
    ids = given[2][scored]
    for f, log_p in enumerate(kernel.log_probabilities(scores.states[scored])):
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
        came = log_p[np.arange(len(ids)), given[4][ids, f]]
        np.testing.assert_allclose(-came, scores.surprise[ids, f], atol=1e-5)


@pytest.mark.parametrize("core", KERNELS)
def test_extreme_states_stay_finite(core: str) -> None:
    """Huge weights give large but finite surprise, not NaN or infinity."""
    spec = replace(spec_of(core, 16), sizes=(67, 5), inputs=(), values=0)
    weights = model_of(spec).weights()
    for name in weights.keys() - {"start", "norm.weight", "norm.bias"}:
        weights[name] = weights[name] * np.float32(1e4 if name.startswith("head") else 10)
    kernel = make_kernel(spec, weights)
    tokens = np.stack(np.meshgrid(np.arange(67), np.arange(5)), -1).reshape(-1, 2).astype(np.int32)
    n = len(tokens)
    scores = kernel.score_and_step(
        np.zeros(n, np.int8), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.bool_), tokens,
        np.full(n, 20, np.float32), np.zeros((1, spec.core_state), np.float32),
    )  # fmt: skip
    assert np.isfinite(scores.surprise).all()
    assert np.isfinite(scores.hidden).all()


@pytest.mark.parametrize("core", KERNELS)
def test_without_fields_and_without_operations(core: str) -> None:
    """A model of numbers alone steps and has no surprise; a slice of nothing gives the rows back."""
    spec = replace(spec_of(core), sizes=())
    kernel, (given, hidden) = kernel_of(spec), slice_of(7, 3, 40, spec)
    given = (*given[:4], given[4][:, len(SIZES) :], given[5], np.empty((len(given[4]), 0, 2), np.int32), given[7])
    scores = run(kernel, given, hidden)
    assert scores.surprise.shape == (len(given[4]), 0)
    assert not scores.end_surprise.any()
    assert (scores.hidden != hidden).any()
    assert kernel.log_probabilities(scores.states) == []
    nothing, _ = taken(given, np.arange(0), np.arange(0))
    np.testing.assert_array_equal(run(kernel, nothing, hidden).hidden, hidden)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("start", lambda w: w.pop("start")),
        ("finite", lambda w: w["head.bias"].__setitem__(0, np.nan)),
        ("vocabulary", lambda w: w.__setitem__("head.weight", w["head.weight"][:-1])),
        ("vocabulary", lambda w: w.__setitem__("head.bias", w["head.bias"][:-1])),
        ("vocabulary", lambda w: w.__setitem__("embeddings.1.weight", w["embeddings.1.weight"][:-1])),
    ],
)
@pytest.mark.parametrize("core", KERNELS)
def test_weights_that_do_not_fit_are_refused(core: str, name: str, damage) -> None:
    """A missing, non-finite or misshapen weight is a `BundleError` with a sentence."""
    weights = {k: v.copy() for k, v in model_of(spec_of(core)).weights().items()}
    damage(weights)
    with pytest.raises(BundleError, match=name):
        make_kernel(spec_of(core), weights)


@pytest.mark.parametrize("core", KERNELS)
def test_each_of_a_cores_own_weights_is_looked_at(core: str) -> None:
    """One that is missing or has another shape is named or refused, whichever it is, so also of another size."""
    weights = model_of(spec_of(core)).weights()
    for name in weights.keys() - {"change.weight", "change.bias"}:  # which are the forecasts' own
        with pytest.raises(BundleError, match=f"no weight {name}; train it again"):
            make_kernel(spec_of(core), {k: w for k, w in weights.items() if k != name})
        with pytest.raises(BundleError, match="do not fit its vocabulary"):
            make_kernel(spec_of(core), {**weights, name: weights[name][1:]})
    with pytest.raises(BundleError, match="do not fit its vocabulary"):
        make_kernel(spec_of(core, 64), weights)
