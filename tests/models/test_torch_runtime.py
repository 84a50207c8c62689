"""Torch serves every core as one event after the other would, and as a kernel does, within a tolerance."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import torch_runtime
from models.errors import BundleError, RuntimeUnavailableError
from models.family import make_model
from models.kernels import LATE, STEP
from models.runtime import Runtime, Scores, load_runtime, make_kernel
from models.spec import CORES, KERNELS, ModelSpec, state_size
from models.torch_runtime import Runs, TorchRuntime
from tests.models.drawn import draw_operations

SIZES, INPUTS, HIDDEN, WINDOW = (40, 5, 4), (8,), 32, 9
NATS, STATES = {"atol": 2e-4, "rtol": 1e-4}, {"atol": 2e-5, "rtol": 1e-4}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("REQUIRE_GPU") != "1", reason="there is no CUDA device",
    )),
]  # fmt: skip

Operations = tuple[np.ndarray, ...]


def spec_of(core: str) -> ModelSpec:
    return ModelSpec(core, HIDDEN, SIZES, INPUTS, WINDOW)


def weights_of(core: str, spec: ModelSpec | None = None) -> dict[str, np.ndarray]:
    """Of a model nobody trained, sure of itself and with a start state that is not zero."""
    torch.manual_seed(3)
    model = make_model(spec_of(core) if spec is None else spec)
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(4)
    return model.weights()


def operations(seed: int, rows: int, count: int, hot: float = 0.0) -> Operations:
    """Kinds, rows, records, openings, ids, gaps, rows' states and ranges: as `walk_sessions` gives them, at random.

    A share `hot` of all falls on row 0. Rows begin open or not, sessions end and open again, some events are late.
    """
    rng = np.random.default_rng(seed)
    kind, row, record, first = draw_operations(rng, rng.random(rows) < 0.5, count, hot)
    n = len(first)
    tokens = np.stack([rng.integers(0, size, n) for size in SIZES + INPUTS], -1).reshape(n, 4)
    ranges = np.stack([np.zeros((n, 1)), np.full((n, 1), SIZES[-1])], -1)
    ranges[tokens[:, 2] > 0] = (1, SIZES[-1])
    ranges[tokens[:, 2] == 0] = (0, 1)
    return (
        np.array(kind, np.int8), np.array(row, np.int32), np.array(record, np.int32), np.array(first, np.bool_),
        tokens.astype(np.int32), rng.exponential(2, n).astype(np.float32),
        np.zeros((rows, 0), np.float32), ranges.astype(np.int32),
    )  # fmt: skip


def begun(runtime: Runtime, core: str, rows: int) -> np.ndarray:
    """States of sessions of 0 to 12 events."""
    rng, hidden = np.random.default_rng(1), np.zeros((rows, state_size(core, HIDDEN, WINDOW, 4)), np.float32)
    for event in range(12):
        mine = np.flatnonzero(np.arange(rows) % 13 > event).astype(np.int32)
        tokens = np.stack([rng.integers(0, size, len(mine)) for size in SIZES + INPUTS], -1).astype(np.int32)
        hidden = runtime.score_and_step(
            np.zeros(len(mine), np.int8), mine, np.arange(len(mine), dtype=np.int32), np.full(len(mine), event == 0),
            tokens, np.ones(len(mine), np.float32), hidden,
        ).hidden  # fmt: skip
    return hidden


def one_by_one(runtime: Runtime, given: Operations) -> Scores:
    """The same operations, each a slice of its own."""
    kind, row, record, first, tokens, gaps, hidden, among = given
    out = Scores(
        np.empty((len(tokens), 3), np.float32), np.empty((len(kind), HIDDEN), np.float32),
        np.zeros(len(kind), np.float32), hidden.copy(),
    )  # fmt: skip
    for o in range(len(kind)):
        i = np.array([record[o]] if kind[o] in {STEP, LATE} else [], np.int64)
        found = runtime.score_and_step(
            kind[o : o + 1], np.zeros(1, np.int32), np.zeros(1, np.int32), first[i], tokens[i], gaps[i],
            out.hidden[row[o] : row[o] + 1], among[i],
        )  # fmt: skip
        out.surprise[i], out.states[o], out.end_surprise[o] = found.surprise, found.states[0], found.end_surprise[0]
        out.hidden[row[o]] = found.hidden[0]
    return out


def assert_like(found: Scores, wanted: Scores) -> None:
    np.testing.assert_allclose(found.surprise, wanted.surprise, **NATS)
    np.testing.assert_allclose(found.end_surprise, wanted.end_surprise, **NATS)
    np.testing.assert_allclose(found.states, wanted.states, **STATES)
    np.testing.assert_allclose(found.hidden, wanted.hidden, **STATES)


@settings(max_examples=90, deadline=None)
@given(core=st.sampled_from(KERNELS), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), count=st.integers(0, 90))
def test_torch_serves_a_core_as_its_kernel_does(core: str, seed: int, rows: int, count: int) -> None:
    """Events, late ones, ends and new sessions of one row in one slice: the kernel's scores and states."""
    weights = weights_of(core)
    kernel, runtime = make_kernel(spec_of(core), weights), TorchRuntime(spec_of(core), weights)
    given = (*operations(seed, rows, count)[:6], begun(kernel, core, rows), operations(seed, rows, count)[7])
    untouched = given[6].copy()
    assert_like(runtime.score_and_step(*given), kernel.score_and_step(*given))
    np.testing.assert_array_equal(given[6], untouched)


@settings(max_examples=25, deadline=None)
@given(core=st.sampled_from(CORES), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 15), count=st.integers(1, 60))
def test_a_slice_equals_one_by_one(core: str, seed: int, rows: int, count: int) -> None:
    """Each operation alone, with the state that the one before it left, gives what the whole slice gives."""
    runtime = TorchRuntime(spec_of(core), weights_of(core))
    given = (*operations(seed, rows, count)[:6], begun(runtime, core, rows), operations(seed, rows, count)[7])
    assert_like(runtime.score_and_step(*given), one_by_one(runtime, given))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("core", CORES)
def test_hot_keys_and_long_runs(core: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,500 operations on 300 rows half fall on one row; however batches are cut, it is the same."""
    weights = weights_of(core)
    given = operations(8, 300, 1_500, hot=0.5)
    wanted = TorchRuntime(spec_of(core), weights)
    given = (*given[:6], begun(wanted, core, 300), given[7])
    runtime, whole = TorchRuntime(spec_of(core), weights, device), wanted.score_and_step(*given)
    assert_like(whole, one_by_one(wanted, given))
    for longest, most, few in ((256, 16_384, 1_024), (7, 64, 1), (1_000, 1 << 20, 1 << 20)):
        monkeypatch.setattr(torch_runtime, "LONGEST", longest)
        monkeypatch.setattr(torch_runtime, "MOST", most)
        monkeypatch.setattr(torch_runtime, "FEW", few)
        monkeypatch.setattr(torch_runtime, "MOST_LOGITS", most)
        assert_like(runtime.score_and_step(*given), whole)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 600), max_size=60), longest=st.integers(1, 300), most=st.integers(1, 5_000),
    few=st.integers(0, 2_000), window=st.integers(0, 40),
)  # fmt: skip
def test_batches_are_bounded_and_little_is_padding(
    lengths: list[int], longest: int, most: int, few: int, window: int
) -> None:
    """Each run with events is in one batch, the longest first; one alone may be more than is allowed."""
    none = np.zeros(0, np.int64)
    runs = Runs(none, none, none, none, np.array(lengths, np.int64), none, none)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_runtime, "LONGEST", longest)
        patch.setattr(torch_runtime, "MOST", most)
        patch.setattr(torch_runtime, "FEW", few)
        batches = [batch.tolist() for batch in runs.batches(window)]
    assert sorted(itertools.chain(*batches)) == [run for run, length in enumerate(lengths) if length > 0]
    in_order = [lengths[run] for batch in batches for run in batch]
    assert in_order == sorted(in_order, reverse=True)
    for batch in batches:
        costs = [min(lengths[run], longest) + window for run in batch]
        assert len(batch) * costs[0] <= most or len(batch) == 1
        assert 2 * sum(costs) >= len(batch) * costs[0] or len(batch) * costs[0] <= few + costs[0] * len(batch) // 2


@pytest.mark.parametrize("core", CORES)
def test_rows_may_be_wider(core: str) -> None:
    """What lies beyond the model's state stays as it is."""
    weights = weights_of(core)
    given = operations(4, 5, 40)
    for runtime in [TorchRuntime(spec_of(core), weights), load_runtime(spec_of(core), weights)]:
        narrow = begun(runtime, core, 5)
        beyond = np.arange(15, dtype=np.float32).reshape(5, 3)
        wide = runtime.score_and_step(*given[:6], np.hstack([narrow, beyond]), given[7])
        np.testing.assert_array_equal(wide.hidden[:, -3:], beyond)
        assert_like(
            Scores(wide.surprise, wide.states, wide.end_surprise, wide.hidden[:, :-3]),
            runtime.score_and_step(*given[:6], narrow, given[7]),
        )


@pytest.mark.parametrize("core", CORES)
def test_explained_probabilities_are_those_scored(core: str) -> None:
    """`log_probabilities` of a state agrees with the surprise scored under it, and each field sums to one."""
    runtime, given = TorchRuntime(spec_of(core), weights_of(core)), operations(4, 5, 40)
    scores = runtime.score_and_step(*given[:6], begun(runtime, core, 5))  # without ranges
    events = np.isin(given[0], [STEP, LATE])
    for f, log_p in enumerate(runtime.log_probabilities(scores.states[events])):
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
        came = given[4][given[2][events], f]
        np.testing.assert_allclose(-log_p[np.arange(len(came)), came], scores.surprise[given[2][events], f], atol=1e-5)


def test_nothing_is_scored_as_nothing() -> None:
    """A slice without operations gives the rows back."""
    runtime, rows = TorchRuntime(spec_of("gru"), weights_of("gru")), np.ones((2, HIDDEN), np.float32)
    none = np.zeros(0, np.int32)
    scores = runtime.score_and_step(
        none.astype(np.int8), none, none, none.astype(np.bool_), none.reshape(0, 4), none.astype(np.float32), rows
    )
    assert scores.surprise.shape == (0, 3)
    np.testing.assert_array_equal(scores.hidden, rows)


@pytest.mark.parametrize(
    ("sentence", "damage"),
    [
        ("has no weight start", lambda w: w.pop("start")),
        ("not finite", lambda w: w["head.bias"].__setitem__(0, np.nan)),
        ("do not fit its vocabulary", lambda w: w.__setitem__("head.weight", w["head.weight"][:-1])),
        ("do not fit its vocabulary", lambda w: w.__setitem__("tail.weight", w["head.weight"])),
    ],
)
def test_weights_that_do_not_fit_are_refused(sentence: str, damage) -> None:
    """A missing, non-finite, misshapen or unknown weight is a `BundleError` with a sentence."""
    weights = {k: v.copy() for k, v in weights_of("tcn").items()}
    damage(weights)
    with pytest.raises(BundleError, match=sentence):
        TorchRuntime(spec_of("tcn"), weights)


def test_which_runtime_serves() -> None:
    """The kernel where there is one, unless torch or CUDA is asked for; names say which."""

    def name(core: str, *asked: str) -> str:
        return load_runtime(spec_of(core), weights_of(core), *asked).name

    best = "cuda" if torch.cuda.is_available() else "cpu"
    for core in KERNELS:
        assert name(core) == name(core, "auto", "auto") == name(core, "kernel", "auto") == "kernel"
        assert name(core, "torch", "cpu") == "torch-cpu"
        assert name(core, "torch", "auto") == f"torch-{best}"
    assert set(CORES) - set(KERNELS) == {"transformer"}
    assert name("transformer") == name("transformer", "auto", "cpu") == "torch-cpu"
    assert name("transformer", "auto", "auto") == f"torch-{best}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent_is_a_sentence() -> None:
    """Also for cores whose kernel would not have needed it: who asks for CUDA wants to know."""
    for core in CORES:
        with pytest.raises(RuntimeUnavailableError, match="finds no CUDA device; check the driver"):
            load_runtime(spec_of(core), weights_of(core), "auto", "cuda")


def test_kernels_need_no_torch(tmp_path: Path) -> None:
    """Loading and scoring with them imports nothing of torch."""
    for core in KERNELS:
        np.savez(tmp_path / core, **weights_of(core))
    probe = """
import sys, numpy as np
from models.runtime import load_runtime
from models.spec import KERNELS, ModelSpec, state_size
for core in KERNELS:
    spec = ModelSpec(core, 32, (40, 5, 4), (8,), 9)
    runtime = load_runtime(spec, np.load(f"{sys.argv[1]}/{core}.npz"))
    one, rows = np.zeros(1, np.int32), np.zeros((1, spec.core_state), np.float32)
    ids, gaps = np.zeros((1, 4), np.int32), np.zeros(1, np.float32)
    runtime.score_and_step(np.zeros(1, np.int8), one, one, np.ones(1, np.bool_), ids, gaps, rows)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", probe, str(tmp_path)], check=False).returncode == 0
