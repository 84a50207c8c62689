"""Sessions that hold what was labelled as an anomaly are left out whole, and the others stay as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.history import History, find_sessions
from detectors.labelled_sessions import LeftOut, Moment, leave_out, offsets_at
from detectors.parts import Parts
from features.events import Events
from features.sessions import STEP
from tests.detectors.test_process import (
    as_columns,
    as_events,
    columns_of,
    events_of_a_stream,
    make_window_parts,
    property_test,
    with_rules,
)  # fmt: skip


def sessions_of(history: History) -> set[tuple[int, ...]]:
    """Each session by the offsets of its events."""
    found: dict[int, list[int]] = {}
    for partition in history.partitions:
        steps = partition.walk.steps
        offsets = partition.events.offsets[partition.walk.record[steps]].tolist()
        for session, offset in zip(partition.session[steps].tolist(), offsets, strict=True):
            found.setdefault(session, []).append(offset)
    return set(map(tuple, found.values()))


def columns(drawn: list[Any], parts: Parts, ids: list[str | None] | None = None) -> Events:
    """Events whose times never go back."""
    ordered = [(session, abs(step), *others) for session, step, *others in drawn]
    return as_columns(as_events(ordered, parts, ids), columns_of(parts))


@property_test
@given(
    drawn=events_of_a_stream.filter(len), picked=st.sets(st.integers(0, 60), min_size=1, max_size=4),
    remembered=st.sampled_from([0, 100]), longest=st.sampled_from([2, 100]),
)  # fmt: skip
def test_the_others_are_left_as_they_were(
    drawn: list[Any], picked: set[int], remembered: int, longest: int, parts: Parts
) -> None:
    """Exactly those without a labelled record, events and all; with duplicates, and long ones in pieces."""
    parts = with_rules(parts, {}, remembered)
    arrived = columns(drawn, parts, [f"{n}" if n % 7 else "twice" for n in range(100)] if remembered else None)
    offsets = {2 * n for n in picked}
    before = sessions_of(find_sessions([arrived], parts, longest))
    (left,), told = leave_out([arrived], [offsets], parts, lambda a, p: find_sessions(a, p, longest))
    kept = {session for session in before if not offsets & set(session)}
    assert sorted(left.offsets.tolist()) == sorted(offset for session in kept for offset in session)
    assert told.sessions == len(before) - len(kept)
    assert told.unknown == len(offsets - {offset for session in before for offset in session})
    moments = {
        Moment(events.sessions[events.session[at]], int(events.time_ms[at]))
        for events in [partition.events for partition in find_sessions([arrived], parts, longest).partitions]
        for at in np.flatnonzero(np.isin(events.offsets, list(offsets))).tolist()
    }
    (fewer,), told_so = leave_out([arrived], [moments], parts, lambda a, p: find_sessions(a, p, longest))
    events = find_sessions([arrived], parts, longest).partitions[0].events
    at_moments = set[int]().union(*offsets_at(events, moments).values())
    (expected,), _ = leave_out([arrived], [at_moments], parts, lambda a, p: find_sessions(a, p, longest))
    assert fewer.offsets.tolist() == expected.offsets.tolist(), "all of that moment goes"
    assert (told_so.sessions >= told.sessions, told_so.unknown) == (True, 0)
    if longest > 12:  # pieces of a long session are put together again
        assert sessions_of(find_sessions([left], parts)) == kept


@property_test
@given(drawn=events_of_a_stream.filter(len), at=st.integers(0, 60))
def test_samples_of_a_labelled_window_are_left_out(drawn: list[Any], at: int) -> None:
    """With the other windows of its session, so that none is told from what is left."""
    parts = make_window_parts({}, 1_000, 1)
    arrived = columns(drawn, parts)
    history = find_sessions([arrived], parts)
    windows = history.partitions[0]
    steps = windows.walk.steps
    labelled = int(windows.events.offsets[windows.walk.record[steps[at % len(steps)]]])
    (left,), told = leave_out([arrived], [{labelled}], parts, find_sessions)
    assert told.sessions >= 1
    assert len(left) == len(arrived) - told.records < len(arrived)
    after = find_sessions([left], parts).partitions
    assert not after or labelled not in after[0].events.offsets[after[0].walk.record[after[0].walk.kind == STEP]]


def test_partitions_and_unknown_labels(parts: Parts) -> None:
    """The same offset of another partition means nothing; what names no record is counted, and input stays."""
    lines = [(f"s{n // 2}", 10, ("view", "ok"), False, ()) for n in range(8)]
    one, other, empty = columns(lines, parts), columns(lines, parts), columns([], parts)
    (left, whole, none), told = leave_out([one, other, empty], [{2, 999}, set(), {4}], parts, find_sessions)
    assert told == LeftOut(sessions=1, records=2, unknown=2)
    assert left.offsets.tolist() == [4, 6, 8, 10, 12, 14]
    assert whole.offsets.tolist() == other.offsets.tolist() == one.offsets.tolist()
    assert len(none) == 0
    np.testing.assert_array_equal(left.session, one.session[2:])


def test_without_labels_nothing_is_looked_at(parts: Parts) -> None:
    """A history stays what it is, even one of too few sessions."""
    given_events = columns([("s", 1, ("view", "ok"), False, ())], parts)
    (same,), told = leave_out([given_events], [set()], parts)
    assert same is given_events
    assert told == LeftOut()


@property_test
@given(drawn=events_of_a_stream.filter(len), others=st.sets(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9))))
def test_moments_name_offsets(drawn: list[Any], others: set[tuple[str, int]], parts: Parts) -> None:
    """All of a session at that time; of other times and of strangers nothing."""
    events = columns(drawn, parts)
    names, offsets = [events.sessions[number] for number in events.session.tolist()], events.offsets.tolist()
    came = list(map(Moment, names, events.time_ms.tolist()))
    expected: dict[Moment, list[int]] = {}
    for moment, offset in zip(came, offsets, strict=True):
        expected.setdefault(moment, []).append(offset)
    assert offsets_at(events, {*came, *(Moment(f"nobody-{name}", at) for name, at in others)}) == expected
    one = came[len(came) // 2]
    assert offsets_at(events, [one, Moment(one.session, one.time_ms - 10**12)]) == {one: expected[one]}
