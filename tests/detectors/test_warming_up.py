"""Before a bundle serves: what is learned online scores, the same for any slicing, and survives a restart."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.online import OnlineRules, OnlineState
from detectors.parts import Parts
from detectors.rows import PartitionState
from features.sessions import SessionRules
from features.tokens import TokenEncoder
from pipeline.online_rows import decode_online, encode_online
from pipeline.row_format import RowFormat
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.detectors.test_process import (
    as_columns,
    as_events,
    by_id,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    flatten,
    property_test,
    run_slices,
)
from tests.naive import Event, Partition, process_one

# So small that counts are halved, rings go round and windows turn within the streams that are drawn.
small_rules = st.builds(
    OnlineRules, first=st.sampled_from([0, 3, 10]), counts=st.sampled_from([16, 32, 512]),
    halved_every=st.sampled_from([7, 20, 1_000]), scores=st.sampled_from([4, 16, 64]), numbers=st.sampled_from([4, 16]),
    trees=st.just(3), height=st.just(3), window=st.sampled_from([5, 11]),
)  # fmt: skip


def warming(parts: Parts, rules: OnlineRules, allowed_ms: int | None = None) -> Parts:
    """The same before any bundle serves."""
    return dataclasses.replace(
        parts, learned=None, encoder=TokenEncoder(2, None), online=rules,
        rules=dataclasses.replace(parts.rules, allowed_ms=allowed_ms),
    )  # fmt: skip


@property_test
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=small_rules, allowed_ms=st.sampled_from([None, 0, 1_000]))
def test_fast_equals_naive_for_any_slicing(
    drawn: list[Any], cuts: list[int], rules: OnlineRules, allowed_ms: int | None, any_parts: Parts
) -> None:
    """Scores, p-values, confidence and anomalies of any slicing are those of one record at a time, bit for bit."""
    parts = warming(any_parts, rules, allowed_ms)
    events, partition = as_events(drawn, parts), Partition()
    expected = by_id([v for e in events for v in process_one(e, partition, parts)])
    found, store = run_slices(cut(events, cuts), parts)
    assert by_id(found) == expected
    rows = store.take(list(partition.rows))
    for i, row in enumerate(partition.rows.values()):
        np.testing.assert_array_equal(rows.hidden[i], row.hidden)


@property_test
@given(drawn=events_of_a_stream, at=st.integers(0, 60), rules=small_rules)
def test_cut_anywhere_saved_and_restored(drawn: list[Any], at: int, rules: OnlineRules, any_parts: Parts) -> None:
    """What was learned, written to rows and read back between any two events, changes no later verdict."""
    parts = warming(any_parts, rules)
    events = as_events(drawn, parts)
    whole, _ = run_slices([events], parts)
    store, state, found = RowStore(parts.shape, parts.rules), PartitionState(0), []
    for part in (events[:at], events[at:]):
        done = process_slice(store, as_columns(part, columns_of(parts)), state, parts)
        assert done is not None
        found += flatten(done)
        names, form, kept = store.open_names(), RowFormat(parts.shape), RowStore(parts.shape, parts.rules)
        if names:
            kept.put(names, form.decode(form.encode(store.take(names))))
        assert done.state.online is not None
        online = decode_online(encode_online(done.state.online, rules), rules, len(parts.number_fields))
        store, state = kept, dataclasses.replace(done.state, online=online)
    assert by_id(found) == by_id(whole)


def stream(count: int, odd: dict[int, str]) -> list[Event]:
    """Sessions of view, add, pay, ship; `odd` says what comes instead."""
    words = ["view", "add", "pay", "ship"]
    return [
        Event(i, f"s{i // 4}", i * 10, (odd.get(i, words[i % 4]), "ok"), i % 4 == 3) for i in range(count)
    ]  # fmt: skip


def test_null_at_first_and_then_a_rank(unlearned_parts: Parts) -> None:
    """The first 256 records have no score, later ones have; one that never came before is an anomaly."""
    parts = dataclasses.replace(unlearned_parts, rate=0.01)
    found, _ = run_slices([stream(1_000, {777: "teleport"})], parts)
    records = [v for v in found if v["kind"] == "record"]
    assert all(v["score"] is None for v in records[:256])
    assert all(v["score"] is not None and 0 < v["p_value"] <= 1 and 0 <= v["confidence"] < 1 for v in records[256:])
    assert records[777]["anomaly"]
    assert records[777]["score"] > 5
    assert sum(v["anomaly"] for v in records) <= 0.01 * 1_000
    assert records[-1]["confidence"] > records[300]["confidence"]
    session = next(v for v in found if v["kind"] == "session" and v["session"] == "s194")
    assert session["score"] == records[777]["score"]
    assert session["p_value"] == pytest.approx(4 * records[777]["p_value"])


def test_no_anomaly_before_the_promise_can_be_kept(unlearned_parts: Parts) -> None:
    """With a promise of one in 1,000, and fewer than 1,000 scores, nothing is an anomaly, however strange."""
    parts = dataclasses.replace(unlearned_parts, rate=0.001)
    found, _ = run_slices([stream(1_600, {1_000: "teleport", 1_500: "beam"})], parts)
    records = [v for v in found if v["kind"] == "record"]
    assert not records[1_000]["anomaly"]
    assert records[1_500]["p_value"] < 2 / 1_000
    found, _ = run_slices([stream(3_000, {2_500: "beam"})], parts)
    alarms = [v["offset"] for v in found if v["anomaly"] and v["kind"] == "record"]
    assert set(alarms) <= {2_500, 2_501}  # what comes after a token never seen is strange too
    assert 2_500 in alarms


def test_unheard_of_tokens_leave_no_confidence(unlearned_parts: Parts) -> None:
    """Where every token comes but once, there is nothing to learn, and the confidence says so; memory stays bounded."""
    odd = {i: f"order {i}" for i in range(30_000)}
    found, _ = run_slices([stream(30_000, odd)], unlearned_parts)
    assert found[-1]["confidence"] < 0.05
    state = process_slice(
        RowStore(unlearned_parts.shape, unlearned_parts.rules), as_columns(stream(30_000, odd)), PartitionState(0),
        unlearned_parts,
    )  # fmt: skip
    assert state is not None
    assert state.state.online is not None
    assert max(map(len, encode_online(state.state.online, unlearned_parts.online).values())) < 256 << 10


@pytest.mark.parametrize("rules", [{"reorder_ms": 500}, {"windowed": True}])
def test_where_the_order_depends_on_who_looks_there_is_no_score(rules: dict[str, Any], unlearned_parts: Parts) -> None:
    """Records that wait, and windows, have none while warming up: null, never 0."""
    parts = dataclasses.replace(unlearned_parts, rules=SessionRules(5_000, 12, **rules))
    assert not parts.learns_online


def test_numbers_far_off_are_found(unlearned_parts: Parts) -> None:
    """A spike and a jump in a number that else wanders are among the strangest records."""
    shape = dataclasses.replace(unlearned_parts.shape, fields=0, numbers=1)
    parts = dataclasses.replace(unlearned_parts, fields=("cpu",), shape=shape, encoder=TokenEncoder(0, None), rate=0.01)
    rng = np.random.default_rng(5)
    values = (50 + 10 * np.sin(np.arange(2_000) / 40) + rng.normal(0, 1, 2_000)).tolist()
    values[1_500], values[1_700] = 95.0, math.nan
    events = [Event(i, "host", i * 10, (), False, None, (x,)) for i, x in enumerate(values)]
    columns = dataclasses.replace(as_columns([dataclasses.replace(e, tokens=("", "")) for e in events], 1), tokens=[])
    parts = dataclasses.replace(parts, rules=SessionRules(5_000, 10**6))
    done = process_slice(RowStore(parts.shape, parts.rules), columns, PartitionState(0), parts)
    assert done is not None
    scores = done.verdicts.score
    assert np.isnan(scores[:256]).all()
    assert np.isnan(scores[1_700])
    assert scores[1_500] >= np.nanquantile(scores, 0.995)
    assert done.verdicts.anomaly[1_500]


def test_a_bundle_ends_it(parts: Parts, unlearned_parts: Parts) -> None:
    """Once a bundle serves nothing more is learned online, and what was is dropped."""
    store, events = RowStore(parts.shape, parts.rules), stream(400, {})
    early = process_slice(store, as_columns(events[:300]), PartitionState(0), unlearned_parts)
    assert early is not None
    assert isinstance(early.state.online, OnlineState)
    later = process_slice(store, as_columns(events[300:]), early.state, parts)
    assert later is not None
    assert later.state.online is None
    assert later.verdicts.status == "ok"
    assert np.isnan(later.verdicts.confidence).all()
