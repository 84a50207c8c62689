"""`process_batch` with every core: any slicing, any life of a row, within torch's tolerance or to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.parts import Parts
from detectors.process import process_batch
from detectors.rows import PartitionState, SessionRows
from models.family import make_model
from models.forecast import ForecastRuntime
from models.runtime import load_runtime
from models.spec import CORES, KERNELS, ModelSpec
from pipeline.row_format import RowFormat
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.conftest import CONTEXT, HIDDEN, make_learned, make_number_parts
from tests.detectors.test_process import (
    as_columns,
    as_events,
    by_id,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    flatten,
    run_slices,
)
from tests.models.test_forecast import weights_of
from tests.naive import Event, Partition, process_one

NATS = 5e-4
FORECASTING = tuple(f"{core} that forecasts" for core in CORES)
BITWISE = (*KERNELS, *(f"{core} that forecasts" for core in KERNELS))


def parts_of(core: str, seed: int = 0, spare: int = 0, runtime: str = "torch") -> Parts:
    """A stream with tokens and numbers, an untrained core, and rows that are `spare` wider than its state."""
    core, _, numbers = core.partition(" ")
    parts = make_number_parts("wide")
    assert parts.learned is not None
    if numbers:
        return forecasting_parts_of(parts, core, seed, spare, runtime)
    spec = replace(
        ModelSpec(core, HIDDEN, (), (), CONTEXT), inputs=(25, 8),
        sizes=(*parts.learned.vocabulary.sizes, *parts.learned.numbers.sizes),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = make_model(spec)
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(4)
    learned = replace(
        make_learned(seed, vocabulary=parts.learned.vocabulary, numbers=parts.learned.numbers),
        model=load_runtime(spec, model.weights(), runtime), seasonal=("hour", "weekday"),
    )  # fmt: skip
    shape = replace(parts.shape, hidden=model.state_size + spare)
    return replace(parts, learned=learned, model=replace(spec, sizes=(), inputs=()), shape=shape)


def forecasting_parts_of(parts: Parts, core: str, seed: int, spare: int, runtime: str) -> Parts:
    """The same with numbers that are forecast."""
    assert parts.learned is not None
    spec = ModelSpec(core, HIDDEN, parts.learned.vocabulary.sizes, (25, 8), CONTEXT, values=2)
    model = ForecastRuntime(spec, weights_of(spec, seed), runtime)
    plain = make_learned(seed, vocabulary=parts.learned.vocabulary)
    learned = replace(plain, model=model, seasonal=("hour", "weekday"))
    shape = replace(parts.shape, hidden=spec.state_numbers + spare)
    return replace(parts, learned=learned, model=replace(spec, sizes=(), inputs=()), shape=shape)


def assert_like(found: list[Any], wanted: list[Any]) -> None:
    """The same verdicts, scores within a tolerance; an anomaly at the very threshold may be one or not."""
    mine, theirs = by_id(found), by_id(wanted)
    assert mine.keys() == theirs.keys()
    for key, verdict in mine.items():
        assert verdict["score"] == pytest.approx(theirs[key]["score"], abs=NATS, rel=1e-4)
        judged = {"score", "p_value", "anomaly", "worst_offset", "tag", "tag_confidence"}
        assert {k: v for k, v in verdict.items() if k not in judged} == {
            k: v for k, v in theirs[key].items() if k not in judged
        }


@settings(max_examples=40, deadline=None)
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, core=st.sampled_from([*CORES, *FORECASTING]),
    at=st.integers(0, 60), spare=st.integers(0, 2),
)  # fmt: skip
def test_any_slicing_and_restoring(drawn: list[Any], cuts: list[int], core: str, at: int, spare: int) -> None:
    """Slices cut anywhere, rows written to bytes and read back in between: what the naive story tells."""
    parts = parts_of(core, spare=spare)
    events, partition = as_events(drawn, parts), Partition()
    expected = [v for e in events for v in process_one(e, partition, parts)]
    found, _ = run_slices(cut(events, cuts), parts)
    assert_like(found, expected)
    assert_like(run_restored(events, at, parts), expected)


@settings(max_examples=60, deadline=None)
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, core=st.sampled_from(BITWISE), at=st.integers(0, 60),
    spare=st.integers(0, 2),
)  # fmt: skip
def test_kernels_give_the_same_bits(drawn: list[Any], cuts: list[int], core: str, at: int, spare: int) -> None:
    """The same with kernels: verdicts are the naive story's to the last digit, and so are rows."""
    parts = parts_of(core, spare=spare, runtime="kernel")
    events, partition = as_events(drawn, parts), Partition()
    expected = by_id([v for e in events for v in process_one(e, partition, parts)])
    found, store = run_slices(cut(events, cuts), parts)
    assert by_id(found) == expected
    assert by_id(run_restored(events, at, parts)) == expected
    rows = store.take(list(partition.rows))
    for i, row in enumerate(partition.rows.values()):
        np.testing.assert_array_equal(rows.hidden[i], row.hidden)


def run_restored(events: list[Event], at: int, parts: Parts) -> list[Any]:
    """Verdicts of two slices, between which rows are written to bytes and read back."""
    before, after = events[:at], events[at:]
    first, store = run_slices([before], parts)
    names, row_format, restored = store.open_names(), RowFormat(parts.shape), RowStore(parts.shape, parts.rules)
    restored.put(names, row_format.decode(row_format.encode(store.take(names))) if names else store.take(names))
    state = PartitionState(0, max([-1, *(e.time_ms for e in before)]))
    done = process_slice(restored, as_columns(after, columns_of(parts)), state, parts)
    assert done is not None
    return first + flatten(done)


@pytest.mark.parametrize(("core", "runtime"), [("tcn", "torch"), ("tcn", "kernel"), ("transformer", "torch")])
def test_a_rebuilt_row_is_the_row_itself(core: str, runtime: str) -> None:
    """What sees no further than the context is rebuilt from it without loss, however long the session is.

    But for the time gap before the oldest event kept, which a replay takes for 0; so it is 0 here.
    """
    parts = parts_of(core, runtime=runtime)
    assert parts.learned is not None
    rng = np.random.default_rng(2)
    drawn = [
        (
            "a",
            1_000 * (event != 11 - CONTEXT),
            (["view", "add", "pay"][rng.integers(3)], "ok"),
            False,
            tuple(rng.uniform(0, 300, 3)),
        )
        for event in range(11)
    ]
    events = as_columns(as_events(drawn, parts), 2)
    rows = SessionRows.empty(1, parts.shape)
    _, live, _ = process_batch(events, rows, PartitionState(0), parts)
    stale = replace(live.copy(), bundle=np.array([1], np.uint64), hidden=np.zeros_like(live.hidden))
    nothing = as_columns([], 2)
    nothing = replace(nothing, sessions=["a"])
    _, rebuilt, _ = process_batch(nothing, stale, PartitionState(11, int(events.time_ms.max())), parts)
    assert int(rebuilt.bundle[0]) == parts.learned.number
    np.testing.assert_allclose(rebuilt.hidden, live.hidden, atol=2e-5)
