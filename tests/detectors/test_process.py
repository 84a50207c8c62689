"""Fast equals naive, and slicing changes nothing: the promises the rest of Offbeat stands on."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.parts import Parts
from detectors.process import rebuild_stale
from detectors.rows import PartitionState, SessionRows
from features.duplicates import NO_ID
from features.events import Events
from features.measures import NumberRules
from features.numbers import NumberBins
from features.sessions import NEVER_MS
from features.tokens import stable_hash
from features.windows import WindowRules, window_columns
from pipeline.row_format import RowFormat
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.conftest import make_learned, make_number_parts, with_gaps, with_segments
from tests.naive import Event, Partition, process_one

a_number = st.sampled_from([0.0, 50.0, 50.5, math.nan, -1e9]) | st.integers(0, 10**15).map(float) | st.floats(0, 300)
events_of_a_stream = st.lists(
    st.builds(
        lambda session, step, action, status, is_end, numbers: (session, step, (action, status), is_end, numbers),
        st.sampled_from(["a", "b", "c", "d", "é"]),
        st.sampled_from([0, 0, 1_000])
        | st.integers(-3_000, 4_000)
        | st.sampled_from([7_000, -6_500]),  # clocks go back now and then, and gaps are passed
        st.sampled_from(["view", "add", "pay", "ship", "close", "teleport", None]),
        st.sampled_from(["ok", "failed", "<oov>", None]),
        st.sampled_from([False] * 9 + [True]),
        st.tuples(a_number, a_number, a_number),
    ),
    max_size=60,
)
cuts_of_a_stream = st.lists(st.integers(0, 60), max_size=8)
property_test = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


rules_of_a_stream = st.builds(
    dict,
    max_duration_ms=st.sampled_from([NEVER_MS, 3_000, 9_000]),
    allowed_ms=st.sampled_from([None, 0, 1_000]),
    reorder_ms=st.sampled_from([500, 2_000, 6_000]),
    reorder_events=st.sampled_from([1, 3, 16]),
)


# The last has no calibration of its own.
_SEGMENTS = {"view": "north", "add": "süd", "pay": None, "ship": "north", "close": "süd", "teleport": "few", None: None}
_NAMES = {"ok": "cpu", "failed": "sent", "<oov>": "size", None: None}  # of numbers, by status


def as_events(drawn: list[Any], parts: Parts, ids: list[str | None] | None = None) -> list[Event]:
    now, out = 1_000_000, []
    for offset, (session, step, (action, status), is_end, drawn_numbers) in enumerate(drawn):
        now = max(0, now + step)
        identity = None if ids is None else ids[offset % len(ids)]
        named = bool(parts.measures.named_by)
        tokens = (action, _NAMES[status] if named else status)
        numbers = drawn_numbers[: columns_of(parts)]
        segment = _SEGMENTS[action] if is_segmented(parts) else None
        out.append(
            Event(offset * 2, session, now, tokens, is_end, identity, numbers, segment)
        )  # holes, as after compaction
    return out


def is_segmented(parts: Parts) -> bool:
    """Whether the stream has segments."""
    return parts.learned is not None and bool(parts.learned.segment_records)


def columns_of(parts: Parts) -> int:
    """How many numbers a record has."""
    return len(parts.number_fields) - parts.measures.gaps if parts.windows is None else 2


def make_window_parts(rules: dict[str, Any], size_ms: int, overlap: int, *, gaps: bool = False) -> Parts:
    """Parts of a stream whose cpu, a gauge, and sent, a counter, come in windows."""
    windows = WindowRules(size_ms, size_ms // overlap, ("mean", "max"), counters=(1,), keep_ms=5_000)
    names = window_columns(("cpu", "sent"), windows)
    rng = np.random.default_rng(3)
    bins = NumberBins.learn(rng.gamma(2, 40, (300, len(names))), bins=4)
    parts = make_number_parts("wide")
    learned = with_segments(make_learned(numbers=bins, seasonal=("hour", "weekday")))
    fields = (*parts.fields[:2], *names)
    session_rules = dataclasses.replace(parts.rules, windowed=True, **rules)
    parts = dataclasses.replace(
        parts, fields=fields, shape=dataclasses.replace(parts.shape, numbers=len(names), counters=0),
        rules=session_rules, learned=learned, measures=NumberRules(), windows=windows,
    )  # fmt: skip
    return with_gaps(parts) if gaps else parts


def last_of(parts: Parts) -> Event:
    """An event so late that all before it are released, and over."""
    return Event(10_000, "the last", 2_000_000_000, (None, None), False, None, (0.0,) * columns_of(parts))


def with_rules(parts: Parts, rules: dict[str, Any], remembered: int = 0) -> Parts:
    return dataclasses.replace(parts, rules=dataclasses.replace(parts.rules, **rules), remembered=remembered)


def as_columns(events: list[Event], columns: int = 0, *, segmented: bool = False) -> Events:
    numbers: dict[str, int] = {}
    session = [numbers.setdefault(e.session, len(numbers)) for e in events]
    return Events(
        np.arange(len(events), dtype=np.int32), np.array([e.offset for e in events], np.int64),
        np.array([e.time_ms for e in events], np.int64), np.array(session, np.int32), list(numbers),
        [[e.tokens[f] for e in events] for f in (0, 1)], np.array([e.is_end for e in events], np.bool_), [], 0,
        events[-1].offset + 1 if events else None,
        numbers=np.array([e.numbers for e in events], np.float64).reshape(len(events), columns),
        ids=np.array([NO_ID if e.id is None else stable_hash(e.id) for e in events], np.uint64),
        segments=[e.segment for e in events] if segmented else None,
    )  # fmt: skip


def run_slices(slices: list[list[Event]], parts: Parts, store: RowStore | None = None) -> tuple[list[Any], RowStore]:
    store = RowStore(parts.shape, parts.rules) if store is None else store
    state, out = PartitionState(0), []
    for part in slices:
        done = process_slice(store, as_columns(part, columns_of(parts), segmented=is_segmented(parts)), state, parts)
        assert done is not None
        state = done.state
        out.extend(flatten(done))
    return out, store


def flatten(done: Any) -> list[dict[str, Any]]:
    """Verdicts as dictionaries like the naive ones."""
    v = done.verdicts
    out = []
    for i in range(len(v.events)):
        out.append(
            {
                "kind": "record" if v.events.windows is None else f"window {v.events.windows[i]}",
                "offset": int(v.events.offsets[i]),
                "session": v.events.sessions[v.events.session[i]], "late": bool(v.late[i]),
                "segment": None if v.events.segments is None else v.events.segments[i],
            }
            | judged(v.score[i], v.p_value[i], v.anomaly[i], v.confidence[i])
            | v.tags.of(int(v.walk.of_events[i]))
        )  # fmt: skip
    for e, operation in enumerate(v.ends.operation.tolist()):
        w = v.walk
        out.append(
            {
                "kind": "session", "offset": int(v.ends.last_offset[e]), "session": done.names[w.row[operation]],
                "ended": {1: "event", 2: "gap", 3: "limit", 4: "input"}[int(w.kind[operation])],
                "events": int(w.ended_events[operation]), "first_ms": int(w.ended_first_ms[operation]),
                "last_ms": int(w.ended_last_ms[operation]), "worst_offset": int(v.ends.worst_offset[e]),
                "segment": v.ends.segment[e],
            }
            | judged(v.ends.score[e], v.ends.p_value[e], v.ends.anomaly[e], v.ends.confidence[e])
            | v.tags.of(operation)
        )  # fmt: skip
    return out


def judged(score: Any, p_value: Any, anomaly: Any, confidence: Any) -> dict[str, Any]:
    if np.isnan(score):
        return {"score": None, "p_value": None, "anomaly": bool(anomaly)}
    found = {"score": float(score), "p_value": float(p_value), "anomaly": bool(anomaly)}
    return found if np.isnan(confidence) else found | {"confidence": float(confidence)}


def by_id(verdicts: list[Any]) -> dict[tuple[str, int, int | None], Any]:
    # Sliding windows may share their last sample, and two sessions of them may; times tell these apart.
    keyed = {(v["kind"], v["offset"], v.get("last_ms")): v for v in verdicts}
    assert len(keyed) == len(verdicts), "each verdict has an id of its own"
    return keyed


def cut(events: list[Event], cuts: list[int]) -> list[list[Event]]:
    edges = [0, *sorted(min(c, len(events)) for c in cuts), len(events)]
    return [events[a:b] for a, b in pairwise(edges)]


@property_test
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_fast_equals_naive_for_any_slicing(drawn: list[Any], cuts: list[int], any_parts: Parts) -> None:
    """`process_batch` over any slicing gives what `process_one` gives event by event, bit for bit."""
    parts = any_parts
    events, partition = as_events(drawn, parts), Partition()
    expected = by_id([v for e in events for v in process_one(e, partition, parts)])
    found, store = run_slices(cut(events, cuts), parts)
    assert by_id(found) == expected
    rows = store.take(list(partition.rows))
    for i, (_name, row) in enumerate(partition.rows.items()):
        np.testing.assert_array_equal(rows.hidden[i], row.hidden)
        assert (rows.events[i], rows.last_ms[i], rows.applied[i]) == (row.events, row.last_ms, row.applied)
        assert rows.segment[i].decode() == (row.segment or "")
        assert rows.tag[i] == (-row.bad if row.in_stretch else row.bad)
        kept = zip(*(column.tolist() for column in rows.recent(i)), strict=True)
        np.testing.assert_equal([(t, tuple(h), tuple(m)) for t, h, m in kept], row.context)
    assert store.open_sessions == len(partition.rows)


@property_test
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream, remembered=st.sampled_from([0, 2, 8]),
    ids=st.lists(st.sampled_from(["1", "2", "3", "4", "5", None]), min_size=1, max_size=13),
)  # fmt: skip
def test_order_lateness_and_duplicates_equal_naive_for_any_slicing(
    drawn: list[Any], cuts: list[int], rules: dict[str, Any], remembered: int, ids: list[str | None], any_parts: Parts
) -> None:
    """Held back, put in order, late or dropped: whenever somebody looks, the same verdicts come in the end."""
    parts = any_parts
    parts = with_rules(parts, rules, remembered)
    events = as_events(drawn, parts, ids)
    last = last_of(parts)
    partition = Partition()
    expected = by_id([v for e in [*events, last] for v in process_one(e, partition, parts)])
    found, store = run_slices([*cut(events, cuts), [last]], parts)
    assert by_id(found) == expected
    assert store.open_names() == ["the last"]


@property_test
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream,
    size_ms=st.sampled_from([1_000, 4_000]), overlap=st.sampled_from([1, 2, 4]), reorders=st.booleans(),
    gaps=st.booleans(),
)  # fmt: skip
def test_windows_are_the_same_for_any_slicing(
    drawn: list[Any],
    cuts: list[int],
    rules: dict[str, Any],
    size_ms: int,
    overlap: int,
    reorders: bool,
    gaps: bool,
) -> None:
    """Samples in one slice, in any, and one by one with rows through bytes give the same windows and sessions."""
    parts = make_window_parts(rules | {"reorder_ms": rules["reorder_ms"] * reorders}, size_ms, overlap, gaps=gaps)
    samples, last = as_events(drawn, parts), last_of(parts)
    samples = [dataclasses.replace(s, numbers=(*s.numbers, 0.0, 0.0)[:2]) for s in samples]
    last = dataclasses.replace(last, numbers=(0.0, 0.0))
    whole, _ = run_slices([samples, [last]], parts)
    sliced, store = run_slices([*cut(samples, cuts), [last]], parts)
    assert by_id(sliced) == by_id(whole)
    assert store.open_names() == ["the last"]
    found, state, form = [], PartitionState(0), RowFormat(parts.shape)
    for sample in [*samples, last]:
        names, kept = store.open_names(), RowStore(parts.shape, parts.rules)
        if names:
            kept.put(names, form.decode(form.encode(store.take(names))))
        store = kept
        done = process_slice(store, as_columns([sample], 2, segmented=True), state, parts)
        assert done is not None
        state = done.state
        found += flatten(done)
    assert by_id(found) == by_id(whole)


@property_test
@given(drawn=events_of_a_stream, at=st.integers(0, 60), rules=rules_of_a_stream)
def test_what_waits_survives_a_restart(drawn: list[Any], at: int, rules: dict[str, Any], any_parts: Parts) -> None:
    """Rows with events held back, written to bytes and read back between any two events, change no later verdict."""
    parts = any_parts
    parts = with_rules(parts, rules)
    events = as_events(drawn, parts)
    last = last_of(parts)
    whole, _ = run_slices([events, [last]], parts)
    first, store = run_slices([events[:at]], parts)
    names, row_format = store.open_names(), RowFormat(parts.shape)
    restored = RowStore(parts.shape, parts.rules)
    if names:
        restored.put(names, row_format.decode(row_format.encode(store.take(names))))
    state, then = PartitionState(0, max([-1, *(e.time_ms for e in events[:at])])), []
    for part in (events[at:], [last]):
        done = process_slice(restored, as_columns(part, columns_of(parts), segmented=is_segmented(parts)), state, parts)
        assert done is not None
        state = done.state
        then += flatten(done)
    assert by_id(first + then) == by_id(whole)


@property_test
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_warming_up_is_null_and_still_ends_sessions(drawn: list[Any], cuts: list[int], unlearned_parts: Parts) -> None:
    """Without a bundle the same sessions end, and every score is null, never 0."""
    events, partition = as_events(drawn, unlearned_parts), Partition()
    expected = by_id([v for e in events for v in process_one(e, partition, unlearned_parts)])
    found, _ = run_slices(cut(events, cuts), unlearned_parts)
    assert by_id(found) == expected
    assert all(v["score"] is None and not v["anomaly"] for v in found)


@property_test
@given(drawn=events_of_a_stream, at=st.integers(0, 60))
def test_cut_anywhere_and_restore(drawn: list[Any], at: int, any_parts: Parts) -> None:
    """Rows written to bytes and read back between any two events change no later verdict."""
    parts = any_parts
    events = as_events(drawn, parts)
    before, after = events[:at], events[at:]
    whole, _ = run_slices([before, after], parts)
    first, store = run_slices([before], parts)
    names = store.open_names()
    row_format = RowFormat(parts.shape)
    restored = RowStore(parts.shape, parts.rules)
    restored.put(names, row_format.decode(row_format.encode(store.take(names))) if names else store.take(names))
    state = PartitionState(0, max([-1, *(e.time_ms for e in before)]))
    done = process_slice(restored, as_columns(after, columns_of(parts), segmented=is_segmented(parts)), state, parts)
    assert done is not None
    assert by_id(first + flatten(done)) == by_id(whole)


def test_input_is_left_untouched(parts: Parts) -> None:
    """`process_batch` is pure: rows and partition given in are the same afterwards."""
    from detectors.process import process_batch

    events = as_columns([Event(0, "a", 10, ("view", "ok"), False), Event(1, "a", 20, ("pay", "ok"), True)])
    rows, state = SessionRows.empty(1, parts.shape), PartitionState(0)
    copy = rows.copy()
    process_batch(events, rows, state, parts)
    for column in dataclasses.fields(SessionRows):
        np.testing.assert_array_equal(getattr(rows, column.name), getattr(copy, column.name))
    assert state == PartitionState(0)


def test_a_new_bundle_replays_the_context(parts: Parts) -> None:
    """Under another bundle a row equals a fresh run over the events its context keeps."""
    moments = [0, 1_000, 2_000, 9_000, 5_000, 7_000, 6_000, 10_000, 8_000]  # late ones among the last six
    long = [Event(i, "a", moments[i], (["view", "add", "pay"][i % 3], "ok"), False) for i in range(9)]
    probe = Event(9, "a", 10_500, ("ship", "failed"), True)
    _, store = run_slices([long], parts)
    other = dataclasses.replace(parts, learned=make_learned(7))
    swapped = process_slice(store, as_columns([probe]), PartitionState(9, 10_000), other)
    fresh, _ = run_slices([[*long[-parts.shape.context :], probe]], other)
    assert swapped is not None
    wanted = {**fresh[-1], "events": 10, "first_ms": 0}
    found = flatten(swapped)[-1]
    assert (found["score"], found["p_value"]) == (wanted["score"], wanted["p_value"])


def test_a_window_does_not_open_its_session(parts: Parts) -> None:
    """The oldest event that a long session's row has kept is strange at a session's start: that counts nothing."""
    width, other = parts.shape.context, dataclasses.replace(parts, learned=make_learned(7))
    for events in (width, width + 3):
        session = [Event(i, "a", 1_000 * i, (["view", "add", "pay"][i % 3], "ok"), False) for i in range(events)]
        _, store = run_slices([session], parts)
        rebuilt = rebuild_stale(store.take(["a"]), other)
        fresh, _ = run_slices([session[-width:]], other)
        scores = [verdict["score"] for verdict in fresh if verdict["kind"] == "record"]
        assert rebuilt.worst[0] == max(scores[events > width :])


@pytest.mark.parametrize("flaw", ["weight", "feature", "order"])
def test_the_comparison_sees_a_flaw(flaw: str, parts: Parts) -> None:
    """One changed weight, one changed token or two swapped events are noticed: these tests can fail."""
    events = [Event(i, "ab"[i % 2], 500 * i, (["view", "add", "pay"][i % 3], "ok"), False) for i in range(10)]
    expected, _ = run_slices([events], parts)
    changed = list(events)
    if flaw == "weight":
        learned = make_learned()
        *_, recurrent, _ = learned.model._weights
        recurrent[3, 5] += np.float32(0.01)
        parts = dataclasses.replace(parts, learned=learned)
    elif flaw == "feature":
        changed[2] = dataclasses.replace(changed[2], tokens=("ship", "ok"))
    else:
        changed[0], changed[2] = (
            dataclasses.replace(changed[2], offset=0, time_ms=0),
            dataclasses.replace(changed[0], offset=2, time_ms=1000),
        )
    found, _ = run_slices([changed], parts)
    assert by_id(found) != by_id(expected)


def test_a_session_that_begins_anew_when_it_was_due_ends_once(parts: Parts) -> None:
    """A session ends and begins again in the same millisecond: in any slicing each of the two ends exactly once."""
    step = 60_000
    events = [
        Event(0, "x", 1_000, ("view", "ok"), False), Event(1, "x", 1_000, ("close", "ok"), True),
        Event(2, "x", 1_000, ("view", "ok"), False), Event(3, "y", 1_000 + step, ("view", "ok"), False),
    ]  # fmt: skip
    whole, _ = run_slices([events], parts)
    single, store = run_slices([[e] for e in events], parts)
    assert by_id(single) == by_id(whole)
    assert store.open_sessions == 1


def test_timers_of_ended_sessions_do_not_pile_up(parts: Parts) -> None:
    """Many sessions that end by their end event, long before their gap, leave few timers behind."""
    store = RowStore(parts.shape, dataclasses.replace(parts.rules, gap_ms=10_000_000))
    events = [Event(i, f"s{i}", 1_000, ("close", "ok"), True) for i in range(20_000)]
    run_slices([events[low : low + 500] for low in range(0, len(events), 500)], parts, store)
    assert store.open_sessions == 0
    assert len(store._timers) < 3_000
