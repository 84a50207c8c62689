"""Forecasts of numbers, for every core: step equals forward, any slicing the same, and what each score is made of."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoregression import CAP, SPAN
from models.errors import BundleError
from models.family import SequenceModel, make_model
from models.forecast import ForecastRuntime
from models.kernels import LATE, STEP
from models.rounding import store_weights
from models.runtime import Scores, widened
from models.sequences import Sequence, Sequences, pad, pad_values
from models.spec import CORES, KERNELS, ModelSpec
from models.tempering import temper
from models.training import Epoch, TrainingOptions, mean_loss, train
from models.training_state import TrainingState
from models.usual_errors import with_values
from models.values import Values, held, told
from tests.models.drawn import draw_operations

SIZES, INPUTS, CHANNELS, HIDDEN, WINDOW = (30, 5), (8,), 3, 16, 9
SPEC = ModelSpec("gru", HIDDEN, SIZES, INPUTS, WINDOW, values=CHANNELS)
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
clock = itertools.count().__next__


def weights_of(spec: ModelSpec, seed: int = 3) -> dict[str, np.ndarray]:
    """Of a model nobody trained that tells of changes all the same, and what is usual of its numbers."""
    torch.manual_seed(seed)
    model = make_model(spec)
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(4)
        model.change.weight.normal_()
        model.change.bias.normal_()
    rng = np.random.default_rng(seed)
    usual, reach = rng.random((2, spec.values)) + 0.1
    values = Values.fit([rng.normal(50, 20, (100, spec.values))]).knowing(usual=usual, reach=reach, unit=2.0)
    return {**model.weights(), **values.to_arrays()}


def model_of(spec: ModelSpec) -> SequenceModel:
    model = make_model(spec).eval()
    model.load_weights({k: w for k, w in weights_of(spec).items() if not k.startswith("values.")})
    return model


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """About as in training, some missing, some far away."""
    found = rng.normal(50, 20, shape).astype(np.float32)
    found[rng.random(shape) < 0.2] = np.nan
    found[rng.random(shape) < 0.05] = 1e30
    return found


Slice = tuple[np.ndarray, ...]


def slice_of(seed: int, rows: int, count: int) -> Slice:
    """Kinds, rows, records, openings, ids, gaps and numbers: events, late ones and ends of sessions, at random."""
    rng = np.random.default_rng(seed)
    kind, row, record, first = draw_operations(rng, np.zeros(rows, np.bool_), count)
    n = len(first)
    tokens = np.stack([rng.integers(0, size, n) for size in SIZES + INPUTS], -1).reshape(n, 3)
    return (
        np.array(kind, np.int8), np.array(row, np.int32), np.array(record, np.int32), np.array(first, np.bool_),
        tokens.astype(np.int32), rng.exponential(2, n).astype(np.float32), numbers(rng, n, CHANNELS),
    )  # fmt: skip


def score(runtime: ForecastRuntime, given: Slice, hidden: np.ndarray) -> Scores:
    return runtime.score_and_step(*given[:6], hidden, None, given[6])


def assert_like(found: Scores, wanted: Scores) -> None:
    for name in ("surprise", "states", "end_surprise", "hidden"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_step_equals_forward_on_every_prefix(core: str) -> None:
    """After each of 40 events, one at a time: what the head reads, and the state of a prefix forwarded whole."""
    model, rng = model_of(replace(SPEC, core=core)), np.random.default_rng(1)
    tokens = torch.from_numpy(np.stack([rng.integers(0, size, (2, 40)) for size in SIZES + INPUTS], -1))
    gaps, values = torch.rand(2, 40), torch.randn(2, 40, 2 * CHANNELS)
    outputs, last = model(tokens, gaps, model.start_state(2), values=values)
    others = model(tokens, gaps, model.start_state(2), values=torch.randn(2, 40, 2 * CHANNELS))[0]
    assert (outputs - others).abs().max() > 0.01
    state = model.start_state(2)
    for t in range(40):
        state = model.step(tokens[:, t], gaps[:, t], state, values[:, t])
        torch.testing.assert_close(state[:, :HIDDEN], outputs[:, t], **TOLERANCE)
        if t in {0, 1, WINDOW - 1, WINDOW, 30}:
            prefix = model(tokens[:, : t + 1], gaps[:, : t + 1], model.start_state(2), values=values[:, : t + 1])[1]
            torch.testing.assert_close(state, prefix, **TOLERANCE)
    torch.testing.assert_close(state, last, **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(
    core=st.sampled_from(CORES), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), count=st.integers(1, 50),
    spare=st.integers(0, 2),
)  # fmt: skip
def test_a_slice_equals_one_by_one(core: str, seed: int, rows: int, count: int, spare: int) -> None:
    """Each operation alone, with the state that the one before left; what lies beyond a state stays as it is."""
    spec = replace(SPEC, core=core)
    runtime, given = ForecastRuntime(spec, weights_of(spec)), slice_of(seed, rows, count)
    kind, row, record, first, *of_records = given
    hidden = np.full((rows, spec.state_numbers + spare), 7.0, np.float32)
    whole = score(runtime, given, hidden)
    assert (hidden == 7).all()
    n, m = len(first), len(kind)
    states = np.empty((m, HIDDEN + CHANNELS), np.float32)
    out = Scores(np.empty((n, 2 + CHANNELS), np.float32), states, np.zeros(m, np.float32), hidden.copy())
    for o in range(m):
        i = np.array([record[o]] if kind[o] in {STEP, LATE} else [], np.int64)
        at = slice(row[o], row[o] + 1)
        alone = (kind[o : o + 1], np.zeros(1, np.int32), np.zeros(1, np.int32), first[i], *(c[i] for c in of_records))
        found = score(runtime, alone, out.hidden[at])
        out.surprise[i], out.states[o], out.end_surprise[o] = found.surprise, found.states[0], found.end_surprise[0]
        out.hidden[at] = found.hidden
    assert_like(whole, out)
    assert np.isfinite(whole.surprise).all()
    assert (whole.hidden[:, spec.state_numbers :] == 7).all()


@pytest.mark.parametrize("core", CORES)
def test_a_session_tells_the_obvious_story(core: str) -> None:
    """One session, number by number in plain loops over what the model tells of each prefix as a whole."""
    spec, rng = replace(SPEC, core=core), np.random.default_rng(4)
    weights, model = weights_of(spec), model_of(spec)
    values, n = Values.from_arrays(weights, CHANNELS), 25
    tokens = np.stack([rng.integers(0, size, n) for size in SIZES + INPUTS], -1).astype(np.int32)
    gaps, given = rng.exponential(2, n).astype(np.float32), numbers(rng, n, CHANNELS)
    found = ForecastRuntime(spec, weights).score_and_step(
        np.zeros(n, np.int8), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.arange(n) == 0,
        tokens, gaps, np.zeros((1, spec.state_numbers), np.float32), None, given,
    )  # fmt: skip
    scaled = values.in_spreads(given)
    of_model = torch.from_numpy(told(scaled, held(scaled)))[None]
    with torch.no_grad():
        start = model.start_state(1)
        outputs, _ = model(torch.from_numpy(tokens).long()[None], torch.from_numpy(gaps)[None], start, values=of_model)
        before = torch.cat([start[:, None, :HIDDEN], outputs[:, :-1]], 1)[0]
        changes = model.change(before).numpy()
        nats = model.nats(before, torch.from_numpy(tokens[:, :2]).long(), -100).numpy()
    np.testing.assert_allclose(found.surprise[:, :2].sum(1), nats, **TOLERANCE)
    for c in range(CHANNELS):
        last, square = np.nan, values.usual[c]
        for t in range(n):
            forecast = values.mean[c] + values.spread[c] * (last + changes[t, c])
            np.testing.assert_allclose(found.states[t, HIDDEN + c], forecast, **TOLERANCE)
            came = (float(given[t, c]) - values.mean[c]) / values.spread[c]
            if not np.isnan(came) and not np.isnan(last):
                off = min(abs(min(came, 1e9) - (last + changes[t, c])), CAP)
                square += 2 / (SPAN + 1) * (off**2 - square)
            np.testing.assert_allclose(found.surprise[t, 2 + c], 2.0 * np.sqrt(square) / CHANNELS, **TOLERANCE)
            last = last if np.isnan(came) else min(came, 1e9)


@pytest.mark.parametrize("core", CORES)
def test_numbers_alone(core: str) -> None:
    """Without a token there is no softmax and no end to expect; the score is of the numbers."""
    spec = ModelSpec(core, HIDDEN, (), INPUTS, WINDOW, values=CHANNELS)
    runtime, given = ForecastRuntime(spec, weights_of(spec)), slice_of(2, 3, 40)
    found = score(runtime, (*given[:4], given[4][:, 2:], *given[5:]), np.zeros((3, spec.state_numbers), np.float32))
    assert found.surprise.shape == (len(given[3]), CHANNELS)
    assert (found.surprise > 0).all()
    assert not found.end_surprise.any()
    assert runtime.log_probabilities(found.states) == []


def session(rng: np.random.Generator, ended: bool = True) -> Sequence:
    """A token at random; a number that swings about 3, as wide as its first value says; and one that is noise."""
    n = int(rng.integers(8, 16))
    swing = rng.normal() * (-1.0) ** np.arange(n)
    values = np.stack([3 + swing, rng.normal(size=n)], 1).astype(np.float32)
    values[rng.random(n) < 0.05] = np.nan
    return Sequence(rng.integers(2, 6, (n, 1)).astype(np.int32), np.zeros(n, np.float32), ended, values)


def sessions(count: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.of(session(rng) for _ in range(count))


SWING = ModelSpec("gru", 32, (6,), (), 12, values=2)
QUICK = TrainingOptions(max_epochs=25, patience=25, batch_tokens=256)


@pytest.mark.parametrize("core", CORES)
def test_it_learns_what_changes_and_not_what_is_chance(core: str) -> None:
    """A swing is foreseen once it was seen; of noise the middle is the best forecast; and training says so."""
    spec, epochs, others = replace(SWING, core=core), list[Epoch](), sessions(60, 1)
    weights = train(sessions(400, 0), others, spec, QUICK, epochs.append, clock)
    best = [e.validation_loss for e in epochs if e.best][-1]
    assert mean_loss(weights, spec, others) == pytest.approx(best, rel=1e-6)
    values = Values(np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2))
    known = Values.from_arrays(with_values(weights, spec, values, others), 2)
    assert known.usual[0] < 1  # of a last value that just stays it would be 4
    assert 0.8 < known.usual[1] < 1.4  # and here 2
    assert 1.3 < known.reach[1] < 2.1  # nine tenths of a normal distribution's


def test_nobody_has_to_ask_twice_for_the_same(tmp_path: object) -> None:
    """Going on from any epoch ends in the same weights, and other values are another training."""
    learn, others, states = sessions(60, 2), sessions(20, 3), list[TrainingState]()
    options = replace(QUICK, max_epochs=4)
    whole = train(learn, others, SWING, options, lambda _: None, clock, keep=states.append)
    again = train(learn, others, SWING, options, lambda _: None, clock, resume=states[1])
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert states[0].began["data"] != _began(replace(learn, values=-learn.values), others, options)["data"]  # type: ignore[operator]


def _began(learn: Sequences, others: Sequences, options: TrainingOptions) -> dict[str, str]:
    states: list[TrainingState] = []
    train(learn, others, SWING, replace(options, max_epochs=1), lambda _: None, clock, keep=states.append)
    return states[0].began


def test_padding_adds_nothing() -> None:
    """Sessions of other lengths beside one, and chunks: its errors are those that it has alone."""
    model, rng = model_of(SWING), np.random.default_rng(5)
    batch = [session(rng) for _ in range(4)]

    def loss(of: list[Sequence], chunk: int) -> np.ndarray:
        (tokens, gaps, _), values = pad(of, SWING.sizes), pad_values(of)
        assert values is not None
        state, total = model.start_state(len(of)), torch.zeros(len(of))
        for low in range(0, tokens.shape[1], chunk):
            part = slice(low, low + chunk)
            after, next_state = model(tokens[:, part], gaps[:, part], state, values=values.told[:, part])
            before = torch.cat([state[:, None, :32], after[:, :-1]], 1)
            total += model.off(before, values.last[:, part], values.came[:, part]).sum(1)
            state = next_state
        return total.detach().numpy()

    alone = np.concatenate([loss([one], 64) for one in batch])
    for chunk in (64, 5):
        np.testing.assert_allclose(loss(batch, chunk), alone, rtol=1e-5)


def test_neither_part_drowns_the_other() -> None:
    """`unit` makes numbers vary as much as tokens; without tokens, or where one of both never varies, it is 1."""
    others, values = sessions(60, 1), Values(np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2))
    weights = {k: w for k, w in weights_of(SWING).items() if not k.startswith("values.")}
    stored = with_values(weights, SWING, values, others)
    runtime, n = ForecastRuntime(SWING, stored), len(others.log_gap)
    first = np.isin(np.arange(n), others.starts)
    found = runtime.score_and_step(
        np.zeros(n, np.int8), np.repeat(np.arange(60, dtype=np.int32), others.lengths), np.arange(n, dtype=np.int32),
        first, others.tokens, others.log_gap, np.zeros((60, SWING.state_numbers), np.float32), None, others.values,
    )  # fmt: skip
    assert found.surprise[:, 1:].sum(1).std() == pytest.approx(found.surprise[:, 0].std(), rel=1e-3)
    alone = replace(SWING, sizes=())
    of_numbers = replace(others, tokens=others.tokens[:, :0])
    untold = {k: w for k, w in weights_of(alone).items() if not k.startswith("values.")}
    assert with_values(untold, alone, values, of_numbers)["values.unit"] == [1.0]


def test_half_the_bytes_and_tempered_heads() -> None:
    """float16 rounds weights but no mean or spread, and says what it costs; a temperature changes no forecast."""
    others, values = sessions(60, 1), Values.fit([np.array([[1e9, 1.0], [1e9 + 1, 2.0]])])
    weights = {k: w for k, w in weights_of(SWING).items() if not k.startswith("values.")}
    tempered, checks = temper(weights, SWING, others, 1, mends=True)
    assert len(checks) == 1
    assert not np.array_equal(tempered["head.weight"], weights["head.weight"])
    assert np.array_equal(tempered["change.weight"], weights["change.weight"])
    stored, told_ = store_weights(tempered, "float16", SWING, others)
    assert 0 < abs(told_["float16_loss_change"]) < 0.05
    served = with_values(stored, SWING, values, others)
    assert {a.dtype for name, a in served.items() if not name.startswith("values.")} == {np.dtype(np.float16)}
    assert ForecastRuntime(SWING, widened(served)).values.mean[0] == 1e9 + 0.5


def test_weights_that_do_not_fit_are_refused() -> None:
    """Forecasts of fewer numbers than are named, and a head that is missing: a sentence each."""
    weights = weights_of(SPEC)
    with pytest.raises(BundleError, match="forecasts other numbers than the 2 that it names"):
        ForecastRuntime(replace(SPEC, values=2), weights)
    with pytest.raises(BundleError, match=r"has no weight change\.bias"):
        ForecastRuntime(SPEC, {k: w for k, w in weights.items() if k != "change.bias"})
    with pytest.raises(BundleError, match="do not fit its vocabulary"):
        ForecastRuntime(SPEC, {**weights, "change.weight": weights["change.weight"][:, 1:]})


@pytest.mark.parametrize("sizes", [SIZES, ()])
@settings(max_examples=45, deadline=None)
@given(core=st.sampled_from(CORES), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), count=st.integers(1, 50))
def test_a_kernel_tells_what_torch_tells(sizes: tuple[int, ...], core: str, seed: int, rows: int, count: int) -> None:
    """With tokens and without, within the tolerance; a core without a kernel is served by torch."""
    spec = replace(SPEC, core=core, sizes=sizes)
    weights, given = weights_of(spec), slice_of(seed, rows, count)
    given = (*given[:4], given[4][:, 2 - len(sizes) :], *given[5:])
    kernel, runtime = (ForecastRuntime(spec, weights, asked) for asked in ("auto", "torch"))
    assert (kernel.name, runtime.name) == ("kernel" if core in KERNELS else "torch-cpu", "torch-cpu")
    hidden = np.zeros((rows, spec.state_numbers), np.float32)
    for _ in range(2):
        found = score(kernel, given, hidden)
        assert_like(found, score(runtime, given, hidden))
        hidden = found.hidden


@pytest.mark.parametrize("count", [0, 30])
def test_a_kernel_needs_weights_that_fit(count: int) -> None:
    """Inputs for fewer numbers than it is given are refused."""
    narrow = {k: w[:, : w.shape[1] - 1 - count] if k == "core.weight_ih_l0" else w for k, w in weights_of(SPEC).items()}
    with pytest.raises(BundleError, match="do not fit its vocabulary"):
        ForecastRuntime(SPEC, narrow)
