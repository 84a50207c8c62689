"""The promise kept online: the same in any slicing, true to the rate under drift, and no anomaly is learned away."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.calibration import Calibration
from detectors.parts import Parts
from detectors.process import process_batch
from detectors.promise_keeper import KeeperState, KeepingRules, Tally, Threshold, adapt, learn
from detectors.rows import PartitionState, SessionRows
from pipeline.partition_row import PartitionRow, decode_partition_row
from pipeline.row_format import RowFormat
from pipeline.serving import make_parts
from pipeline.settings import parse_settings
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.conftest import make_learned
from tests.detectors.test_process import (
    as_columns,
    as_events,
    by_id,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    flatten,
    is_segmented,
    property_test,
)
from tests.naive import Event, Partition, process_one

rules_of_keeping = st.builds(
    KeepingRules,
    block=st.sampled_from([1, 3, 7]),
    lag=st.sampled_from([1, 2, 8]),
    frozen=st.sampled_from([0, 2]),
    usual_ms=st.sampled_from([None, 2_000.0]),
)


def keeping(parts: Parts, rules: KeepingRules, rate: float = 0.4) -> Parts:
    """Parts whose thresholds move within sixty records."""
    return dataclasses.replace(parts, keeping=rules, rate=rate)


def run(
    slices: list[list[Event]], parts: Parts, *, limit: int | None = None, restored: bool = False
) -> tuple[list[dict[str, Any]], PartitionState]:
    """Verdicts and the state after; due sessions a few at a time, rows and partition through bytes between slices."""
    store, state, out = RowStore(parts.shape, parts.rules), PartitionState(0), []
    for part in slices:
        if restored:
            store, state = saved(store, state, parts)
        events = as_columns(part, columns_of(parts), segmented=is_segmented(parts))
        while True:
            done = process_slice(store, events, state, parts, limit=limit)
            assert done is not None
            state = done.state
            out += flatten(done)
            events = as_columns([], columns_of(parts), segmented=is_segmented(parts))
            if not done.more_due:
                break
    return out, state


def saved(store: RowStore, state: PartitionState, parts: Parts) -> tuple[RowStore, PartitionState]:
    """Both as a checkpoint brings them back."""
    row = PartitionRow(
        state.next_offset, state.watermark_ms, state.records, 0, "", None, "", "", 0, 0, keeper=state.keeper
    )
    names, form, other = store.open_names(), RowFormat(parts.shape), RowStore(parts.shape, parts.rules)
    if names:
        other.put(names, form.decode(form.encode(store.take(names))))
    return other, dataclasses.replace(state, keeper=decode_partition_row(row.encode()).keeper)


@property_test
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_keeping, late=st.booleans())
def test_thresholds_equal_naive_for_any_slicing(
    drawn: list[Any], cuts: list[int], rules: KeepingRules, late: bool, any_parts: Parts
) -> None:
    """Adapted verdicts on records and on sessions are those of one event after the other, bit by bit."""
    parts = keeping(any_parts, rules)
    if late:
        parts = dataclasses.replace(parts, rules=dataclasses.replace(parts.rules, allowed_ms=0, max_duration_ms=9_000))
    events, partition = as_events(drawn, parts), Partition()
    expected = [v for e in events for v in process_one(e, partition, parts)]
    found, state = run(cut(events, cuts), parts)
    assert by_id(found) == by_id(expected)
    naive = partition.keeper
    if naive.records is not None and naive.sessions is not None:
        assert state.keeper is not None
        assert (state.keeper.records.nats, state.keeper.blocks[-1].nats) == (naive.records.nats, naive.in_force)
    again, after = run(cut(events, cuts), parts, restored=True)
    assert by_id(again) == by_id(found)
    assert after == state


@property_test
@given(drawn=events_of_a_stream, size=st.integers(1, 6), frozen=st.sampled_from([0, 2]))
def test_sessions_ended_a_few_at_a_time_change_nothing(
    drawn: list[Any], size: int, frozen: int, any_parts: Parts
) -> None:
    """Due sessions that end one by one, some blocks later but before the next slice, find the threshold that held."""
    parts = keeping(any_parts, KeepingRules(block=2, lag=4, frozen=frozen))
    events = as_events(drawn, parts)
    whole, state = run([events], parts)
    slices = [events[low : low + size] for low in range(0, len(events) + 1, size)]
    few, after = run(slices, parts, limit=1)
    assert by_id(few) == by_id(whole)
    assert after.keeper == state.keeper


def follow(p_values: np.ndarray, rate: float, decisions: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Adapted p-values, and the threshold each was judged under, less the one it began with."""
    threshold, adapted, nats = Threshold.begin(a_calibration(), rate), np.empty_like(p_values), np.empty_like(p_values)
    for low in range(0, len(p_values), decisions):
        at = slice(low, low + decisions)
        nats[at] = threshold.nats
        found = adapt(p_values[at], np.zeros(len(p_values[at]), np.bool_), rate, threshold.nats, adapted[at])
        threshold = learn(threshold, Tally().plus(found), rate, KeepingRules().frozen)
    return adapted, nats + math.log(rate)


def a_calibration() -> Calibration:
    """With a tail."""
    calibration = Calibration.learn(np.random.default_rng(5).gumbel(size=20_000))
    assert calibration.tail is not None
    return calibration


def drifting(count: int, seed: int, nats: float) -> np.ndarray:
    """P-values of normal data that becomes ever stranger, until alarms are e ** `nats` times as frequent."""
    u = np.random.default_rng(seed).exponential(size=count) + nats * np.arange(count) / count
    return np.minimum(1.0, np.exp(-u))


@pytest.mark.parametrize(("rate", "factor"), [(0.01, 1.1), (0.001, 1.3), (0.5, 1.1)])
@pytest.mark.parametrize("nats", [2.0, -2.0])
def test_the_rate_is_kept_under_slow_drift(rate: float, factor: float, nats: float) -> None:
    """While alarms become seven times as frequent, or a seventh, the kept rate stays at the promise in each fifth."""
    p_values = drifting(500_000, 1, nats if rate < 0.5 else nats / 20)
    adapted, _ = follow(p_values, rate)
    for fifth in np.array_split(adapted <= rate, 5):
        assert rate / factor < fifth.mean() < rate * factor
    if rate < 0.5:
        assert not rate / 1.5 < (p_values <= rate).mean() < rate * 1.5


@pytest.mark.parametrize("length", [256, 3_000, 15_000])
@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_a_long_anomaly_is_not_learned_away(rate: float, length: int) -> None:
    """Of anomalies little beyond the threshold 19 of 20 records are still found, and afterwards all is as before."""
    found = []
    for seed in range(20):
        p_values = drifting(60_000, seed, 0.0)
        strange = slice(20_000, 20_000 + length)
        p_values[strange] = rate * np.exp(-np.random.default_rng(seed).exponential(3.0, length))
        adapted, nats = follow(p_values, rate)
        found.append((adapted[strange] <= rate).mean())
        assert np.abs(nats[-10_000:]).max() < 1.0
    assert np.mean(found) > 0.95


def test_many_anomalies_without_near_misses_move_nothing() -> None:
    """Where every thirtieth session is a fault, all of them little beyond the threshold, it stays where it is."""
    rng, rate = np.random.default_rng(4), 0.001
    p_values = drifting(100_000, 5, 0.0)
    faults = rng.random(len(p_values)) < 1 / 30
    p_values[faults] = 0.0007
    adapted, nats = follow(p_values, rate, decisions=13)
    assert (adapted[faults] <= rate).mean() > 0.95
    assert np.abs(nats).max() < 0.6


def test_what_goes_on_is_the_new_normal() -> None:
    """A step that multiplies alarms by five is taken for a burst at first, and kept to the promise within the hour."""
    rate, half = 0.01, 40_000
    p_values = np.concatenate([drifting(half, 6, 0.0), drifting(half, 7, 0.0) / 5])
    adapted, _ = follow(p_values, rate)
    assert (p_values[half:] <= rate).mean() > 4.5 * rate
    assert (adapted[half + 20_000 :] <= rate).mean() < 1.2 * rate


@pytest.mark.parametrize("flood", [0.0, 1.0])
def test_thresholds_have_bounds(flood: float) -> None:
    """Whether every record is strange or none ever is: a tenth to ten times the calibrated alarms, and no further."""
    for rate in (0.5, 0.1, 0.001):
        p_values = np.full(2_000_000, rate * (0.9 if flood else 1.1)) ** np.where(np.arange(2_000_000) % 2, 1.0, 0.999)
        _, nats = follow(p_values, rate, decisions=2_000)
        assert np.abs(nats).max() <= min(math.log(10), -math.log(rate) / 2) + 1e-9


def test_counting_has_a_ceiling() -> None:
    """Without a tail no threshold goes where counting tells no scores apart: the strangest would be no alarm."""
    few = Calibration.learn(np.random.default_rng(0).integers(0, 9, 2_000))
    assert few.tail is None
    assert Threshold.begin(few, 0.001).highest == -math.log(0.001)
    assert Threshold.begin(few, 0.1).highest == pytest.approx(1.5 * -math.log(0.1))
    assert Threshold.begin(few, 0.01).highest == pytest.approx(-math.log(few.smallest_p_value))


def test_at_the_start_p_values_are_the_calibrations() -> None:
    """Before anything is learned not a bit of a p-value changes."""
    p_values, adapted = drifting(1_000, 8, 0.0), np.empty(1_000)
    adapt(p_values, np.zeros(1_000, np.bool_), 0.001, -math.log(0.001), adapted)
    np.testing.assert_array_equal(adapted, p_values)


def test_another_bundle_or_promise_begins_anew(parts: Parts) -> None:
    """What was learned of one bundle's p-values says nothing of another's."""
    moved = keeping(parts, KeepingRules(block=3))
    events = [Event(i, "ab"[i % 2], 500 * i, (["view", "add", "pay"][i % 3], "ok"), False) for i in range(50)]
    _, state = run([events], moved)
    assert state.keeper is not None
    assert state.keeper.records.nats != -math.log(0.4)
    nothing = as_columns([])
    for other in (dataclasses.replace(moved, rate=0.3), dataclasses.replace(moved, learned=make_learned(7))):
        *_, after = process_batch(nothing, SessionRows.empty(0, parts.shape), state, other)
        assert other.learned is not None
        fresh = KeeperState.begin(other.learned.number, other.rate, other.learned.records, other.learned.sessions)
        assert after.keeper == fresh
    *_, without = process_batch(nothing, SessionRows.empty(0, parts.shape), state, parts)
    assert without.keeper is None


@pytest.mark.parametrize(
    ("section", "keeps"),
    [
        ({}, True), ({"promise": {"adapt": False}}, False), ({"late": {"reorder": "2s"}}, False),
        ({"kind": "metrics", "tokens": [], "numbers": ["cpu"], "window": {"size": "1m"}}, False),
    ],
)  # fmt: skip
def test_where_slices_decide_when_a_record_is_judged_nothing_is_adapted(section: dict[str, Any], keeps: bool) -> None:
    """Records that wait are judged in an order that depends on who looks when, so their thresholds stay."""
    stream = {"topic": "t", "session": {"by": "id", "gap": "1m"}, "time": "ts", "tokens": ["action"]} | section
    settings = parse_settings({"broker": "none:9092", "streams": {"s": stream}}, {})
    assert (make_parts(settings, "s", None).keeping is not None) == keeps
