"""Which earlier events made an anomaly strange: the same however sliced, and as each variant replayed alone says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.contexts import Window, replay
from detectors.occlusion import BUDGET, FULL, LEFT_OUT, NONE, OF_RECORD, OF_SESSION, WINDOW, Occlusion, occlude_records
from detectors.parts import Parts
from detectors.rows import PartitionState
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore
from tests.conftest import CONTEXT
from tests.detectors.test_process import (
    as_columns,
    as_events,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    is_segmented,
)
from tests.detectors.test_process_cores import NATS, parts_of

MANY = 1_000
slowly = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def run(slices: list[list[Any]], parts: Parts, state: PartitionState | None = None) -> list[Processed]:
    """A stream from its beginning."""
    store, done = RowStore(parts.shape, parts.rules), []
    state = PartitionState(0) if state is None else state
    for piece in slices:
        events = as_columns(piece, columns_of(parts), segmented=is_segmented(parts))
        processed = process_slice(store, events, state, parts)
        assert processed is not None
        state = processed.state
        done.append(processed)
    return done


def said(done: list[Processed]) -> dict[tuple[str, int], Occlusion]:
    """What was said, by record or session and the offset it is named by."""
    found = {}
    for each in done:
        verdicts, occluded = each.verdicts, each.occluded
        for i in np.flatnonzero(verdicts.anomaly).tolist():
            found["record", int(verdicts.events.offsets[i])] = occluded.of_record(i)
        for e in np.flatnonzero(verdicts.ends.anomaly).tolist():
            found["session", int(verdicts.ends.last_offset[e])] = occluded.of_session(e)
    return found


def outcomes(done: list[Processed]) -> dict[str, int]:
    """How often each."""
    return {k: n for k in (FULL, WINDOW, BUDGET, NONE) if (n := sum(d.occluded.outcomes[k] for d in done))}


@slowly
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_slicing_changes_nothing(any_parts: Parts, drawn: list[Any], cuts: list[int]) -> None:
    """Bit by bit, whatever the model; and each anomaly is counted once."""
    parts = replace(any_parts, rate=1.0, explained=MANY)
    events = as_events(drawn, parts)
    whole, pieces = run([events], parts), run(cut(events, cuts), parts)
    one, other = said(whole), said(pieces)
    for key in one.keys() & other.keys():
        assert one[key].earlier == other[key].earlier
        assert one[key].outcome == other[key].outcome
        assert one[key].change == other[key].change
    assert {k for k in one.keys() ^ other.keys() if k[0] == "record"} == set()
    assert sum(outcomes(pieces).values()) == len(other)


def naive(window: Window, parts: Parts, width: int) -> list[float]:
    """Scores of a window's last event with nothing left out, then with each event before it, replayed one by one."""
    assert parts.learned is not None
    n = len(window.time_ms) - 1
    found = []
    for left_out in [None, *range(n)]:
        kept = [k for k in range(n + 1) if k != left_out]
        alone = Window(window.time_ms[kept], window.hashes[kept], window.measures[kept], window.is_whole)
        found.append(float(replay([alone], parts.learned.runtime, width, parts).score[-1]))
    return found


@slowly
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_it_is_what_replaying_each_variant_alone_says(any_parts: Parts, drawn: list[Any], cuts: list[int]) -> None:
    """The share of an event is what the score loses with it; where all is kept, nothing left out gives the score."""
    parts = replace(any_parts, rate=1.0, explained=MANY)
    for done in run(cut(as_events(drawn, parts), cuts), parts):
        walk = done.verdicts.walk
        for i, occlusion in done.occluded.records.items():
            window = Window.before(done.verdicts, int(walk.of_events[i]), done.rows, itself=True).last(CONTEXT + 1)
            whole, *others = naive(window, parts, parts.shape.hidden)
            assert occlusion.earlier is not None
            assert [one.share for one in occlusion.earlier] == pytest.approx([whole - other for other in others])
            assert [one.time_ms for one in occlusion.earlier] == window.time_ms[:-1].tolist()
            assert [one.back for one in occlusion.earlier] == list(range(len(others), 0, -1))
            if window.is_whole:
                assert whole == pytest.approx(float(done.verdicts.score[i]), abs=1e-5)
                assert occlusion.outcome == FULL


@slowly
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_a_session_is_explained_by_what_made_its_score(any_parts: Parts, drawn: list[Any], cuts: list[int]) -> None:
    """Its strangest record is named where it is kept, always so if the session is; else it says that it is not."""
    parts = replace(any_parts, rate=1.0, explained=MANY)
    for done in run(cut(as_events(drawn, parts), cuts), parts):
        verdicts, ends = done.verdicts, done.verdicts.ends
        for e, occlusion in done.occluded.sessions.items():
            events = int(verdicts.walk.ended_events[ends.operation[e]])
            if events <= CONTEXT:
                assert occlusion.outcome == FULL
                assert occlusion.worst is not None
                assert float(occlusion.worst.surprise.sum()) == pytest.approx(float(ends.worst[e]), abs=1e-3, rel=1e-4)
                is_end = ends.end_surprise[e] >= ends.worst[e]
                assert occlusion.earlier is not None
                assert len(occlusion.earlier) <= min(OF_SESSION, events - (not is_end))
            elif ends.worst[e] > ends.end_surprise[e] and occlusion.worst is None:
                assert (occlusion.outcome, occlusion.earlier) == (NONE, None)


@pytest.mark.parametrize("core", ["gru", "lstm", "tcn", "transformer", "gru that forecasts"])
def test_it_says_when_older_events_count_too(core: str) -> None:
    """A core that sees no further than the row keeps is explained in full; of another the score may owe to the rest."""
    parts = replace(parts_of(core), rate=1.0, explained=MANY)
    events = as_events([("a", 1, ("add", "ok"), False, (50.0 + i, 9.0 * i, 0.0)) for i in range(CONTEXT)], parts)
    found = said(run([events], parts))
    assert {one.outcome for key, one in found.items() if key[0] == "record"} == {FULL}
    longer = as_events([("a", 1, ("view", "ok"), False, (1e9 * (i < 3), 9.0, 0.0)) for i in range(12)], parts)
    last = said(run([longer], parts))["record", 22]
    assert last.outcome in ({FULL} if core in {"tcn", "transformer"} else {FULL, WINDOW})
    if core == "gru that forecasts":  # the wild values have left the window, but not the running mean
        assert last.outcome == WINDOW


def test_what_made_it_strange_is_found() -> None:
    """Under a core that only remembers one sort of event, that event has the share, and a score without it is usual."""
    parts = replace(parts_of("tcn"), rate=1.0, explained=MANY)
    drawn = [("a", 1, ("teleport" if i == 2 else "add", "ok"), False, (50.0, 9.0, 0.0)) for i in range(5)]
    found = said(run([as_events(drawn, parts)], parts))["record", 8]
    assert found.earlier is not None
    strongest = max(found.earlier, key=lambda one: abs(one.share))
    assert (strongest.back, len(found.earlier)) == (2, 4)


@slowly
@given(drawn=events_of_a_stream.filter(lambda drawn: len(drawn) > 10), cuts=cuts_of_a_stream, passes=st.integers(1, 5))
def test_a_budget_is_for_a_thousand_offsets(any_parts: Parts, drawn: list[Any], cuts: list[int], passes: int) -> None:
    """The first records have their turn, whatever the slices; others are counted, and no verdict changes."""
    parts = replace(any_parts, rate=1.0, explained=passes)
    events = [replace(e, offset=e.offset if i < 8 else e.offset + 1_000) for i, e in enumerate(as_events(drawn, parts))]
    done, free = run(cut(events, cuts), parts), run(cut(events, cuts), replace(parts, explained=MANY))
    for mine, other in zip(done, free, strict=True):
        assert mine.verdicts.score.tobytes() == other.verdicts.score.tobytes()
        assert mine.verdicts.anomaly.tobytes() == other.verdicts.anomaly.tobytes()
    had, would = said(done), said(free)
    for block in (0, 1):
        records = sorted(k for k in would if k[0] == "record" and k[1] // 1_000 == block)
        assert [k for k in records if had[k].outcome != BUDGET] == records[:passes]
        assert all(had[k].earlier is None for k in records[passes:])
    assert all(one.outcome != BUDGET for key, one in had.items() if key[0] == "session")
    assert outcomes(done).get(BUDGET, 0) == sum(one.outcome == BUDGET for one in had.values())
    assert sum(outcomes(done).values()) == len(had)
    again = run([events], parts, PartitionState(0, explaining=(7, passes)))
    assert outcomes(again) == outcomes(run([events], parts)), "the source was made anew since"


def test_nothing_is_replayed_where_it_is_off_or_nothing_is_learned(parts: Parts, unlearned_parts: Parts) -> None:
    """Then all anomalies are counted as unexplained, and the messages say so."""
    events = as_events([("a", 1, ("view", "ok"), False, ())] * 400, parts)
    for asked in (replace(parts, rate=1.0), replace(unlearned_parts, rate=1.0, explained=MANY)):
        done = run([events], asked)
        alarmed = sum(int(d.verdicts.anomaly.sum() + d.verdicts.ends.anomaly.sum()) for d in done)
        assert alarmed > 5
        assert outcomes(done) == {NONE: alarmed}
        assert {(one.outcome, one.earlier) for one in said(done).values()} == {(NONE, None)}


@pytest.mark.parametrize("core", ["lstm", "tcn", "transformer"])
def test_torch_agrees_with_each_variant_alone(core: str) -> None:
    """Within the tolerance of torch, for rows of one batch."""
    parts = replace(parts_of(core), rate=1.0, explained=MANY)
    drawn = [("a", 1, (("view", "add", "pay")[i % 3], "ok"), False, (50.0 + i, 9.0 * i, 0.0)) for i in range(10)]
    for done in run([as_events(drawn, parts)], parts):
        for i, occlusion in done.occluded.records.items():
            operation = int(done.verdicts.walk.of_events[i])
            window = Window.before(done.verdicts, operation, done.rows, itself=True).last(CONTEXT + 1)
            whole, *others = naive(replace(window, is_whole=True), parts, parts.shape.hidden)
            assert occlusion.earlier is not None
            assert [one.share for one in occlusion.earlier] == pytest.approx([whole - o for o in others], abs=2 * NATS)


def test_a_long_context_is_left_out_in_part(parts: Parts) -> None:
    """Only the last events are left out, one by one, so that an explanation has a largest cost."""
    long = replace(
        parts, rate=1.0, explained=MANY, shape=replace(parts.shape, context=64),
        rules=replace(parts.rules, max_events=100),
    )  # fmt: skip
    events = as_events([("a", 1, ("view", "ok"), False, ())] * 60, long)
    done = run([events], long)
    live = said(done)["record", 118]
    (last_record,) = np.flatnonzero(done[-1].verdicts.events.offsets == 118)
    by_replay = occlude_records(done[-1].verdicts, np.array([last_record]), done[-1].rows, long, LEFT_OUT)[last_record]
    for last, most in ((live, OF_RECORD), (by_replay, LEFT_OUT)):
        assert last.earlier is not None
        assert [one.back for one in last.earlier] == list(range(most, 0, -1))
        assert last.outcome == FULL
    assert by_replay.earlier is not None
    assert by_replay.earlier[-OF_RECORD:] == live.earlier
