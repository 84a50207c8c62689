"""When sessions end: by event, gap, limit, and with the input; the walk equals an obvious loop."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.event_order import NOTHING_HELD, put_in_order
from features.events import Events
from features.sessions import (
    END_EVENT,
    END_GAP,
    END_INPUT,
    END_LIMIT,
    LATE,
    NO_WATERMARK,
    STEP,
    SessionClocks,
    SessionRules,
    Walk,
    log_gaps,
    number_sessions,
    walk_sessions,
)

RULES = SessionRules(gap_ms=100, max_events=4)
streams = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-60, 120), st.sampled_from([False] * 5 + [True])), max_size=40
)


def walk(
    events: list[tuple[int, int, bool]], clocks: SessionClocks | None = None, watermark_ms: int = NO_WATERMARK, *,
    sessions: int = 4, close_all: bool = False, rules: SessionRules = RULES,
) -> Walk:  # fmt: skip
    """Walk (session, time, is end) triples."""
    session, time_ms, ends = zip(*events, strict=True) if events else ((), (), ())
    nothing = np.zeros(sessions, np.int64)
    made = Events(
        np.arange(len(events), dtype=np.int32), np.arange(len(events)), np.array(time_ms, np.int64),
        np.array(session, np.int32), [], [], np.array(ends, np.bool_), [], 0, None,
    )  # fmt: skip
    ordered = put_in_order(made, np.full(sessions, NOTHING_HELD, object), watermark_ms, rules, close_all=close_all)
    return walk_sessions(
        ordered, SessionClocks(nothing, nothing, nothing) if clocks is None else clocks, rules, close_all=close_all
    )


def as_times(steps: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    now, out = 1_000, []
    for session, step, is_end in steps:
        now = max(0, now + step)
        out.append((session, now, is_end))
    return out


def ends_of(walked: Walk) -> list[tuple[int, int, int]]:
    """(session, kind, events) of each end, in order."""
    return [
        (int(r), int(k), int(n))
        for k, r, n in zip(walked.kind, walked.row, walked.ended_events, strict=True)
        if k != STEP
    ]


def test_each_way_to_end() -> None:
    """The end event, the limit, the gap passed by another session's time, and the end of the input."""
    assert ends_of(walk([(0, 1, False), (0, 2, True)])) == [(0, END_EVENT, 2)]
    assert ends_of(walk([(0, t, False) for t in range(5)])) == [(0, END_LIMIT, 4)]
    assert ends_of(walk([(0, 0, False), (1, 100, False)])) == []
    assert ends_of(walk([(0, 0, False), (1, 101, False)])) == [(0, END_GAP, 1)]
    assert ends_of(walk([(0, 0, False), (0, 101, False)])) == [(0, END_GAP, 1)]
    assert ends_of(walk([(0, 0, False)], close_all=True)) == [(0, END_INPUT, 1)]
    assert ends_of(walk([(0, 0, False), (1, 500, False)], close_all=True)) == [(0, END_GAP, 1), (1, END_INPUT, 1)]


def test_a_session_lasts_no_longer_than_its_duration() -> None:
    """It ends by whichever comes first, silence or duration, and the next event begins another."""
    rules = replace(RULES, max_duration_ms=150)
    assert ends_of(walk([(0, 0, False), (0, 90, False), (0, 150, False)], rules=rules)) == []
    assert ends_of(walk([(0, 0, False), (0, 90, False), (0, 151, False)], rules=rules)) == [(0, END_LIMIT, 2)]
    assert ends_of(walk([(0, 0, False), (0, 90, False), (1, 160, False)], rules=rules)) == [(0, END_LIMIT, 2)]
    assert ends_of(walk([(0, 0, False), (0, 40, False), (1, 200, False)], rules=rules)) == [(0, END_GAP, 2)]


def test_late_events_neither_open_nor_step_nor_end() -> None:
    """One behind its session by more than is allowed, and one whose session would be over at once."""
    rules = replace(RULES, allowed_ms=10)
    walked = walk([(0, 100, False), (0, 90, False), (0, 89, True), (0, 120, False)], rules=rules)
    assert walked.kind.tolist() == [STEP, STEP, LATE, STEP]
    assert walked.clocks.events[0] == 3
    walked = walk([(0, 500, False), (1, 399, True), (2, 400, False)], rules=rules)
    assert walked.kind.tolist() == [STEP, LATE, STEP]
    assert (walked.first.tolist(), walked.opens.tolist()) == ([True, True, True], [True, False, True])


def test_the_fourth_event_can_be_the_end_event() -> None:
    """An end event that also fills the session ends it once, as an event."""
    assert ends_of(walk([(0, 0, False), (0, 1, False), (0, 2, False), (0, 3, True)])) == [(0, END_EVENT, 4)]


def test_a_clock_that_goes_back() -> None:
    """A negative gap counts as 0, and the session's last time stays the largest."""
    walked = walk([(0, 50, False), (0, 40, False), (0, 60, False)])
    assert walked.gap_ms.tolist() == [0, 0, 10]
    assert walked.clocks.last_ms[0] == 60
    assert walked.clocks.first_ms[0] == 50


@settings(deadline=None)
@given(streams)
def test_the_walk_is_the_obvious_loop(steps: list[tuple[int, int, bool]]) -> None:
    """Ends are those a loop over events finds that looks at every open session each time."""
    events = as_times(steps)
    open_: dict[int, list[int]] = {}  # session: events, last time
    expected, watermark = [], NO_WATERMARK
    for session, time_ms, is_end in events:
        watermark = max(watermark, time_ms)
        for s in [s for s, (_, last) in open_.items() if last + RULES.gap_ms < watermark]:
            expected.append((s, END_GAP, open_.pop(s)[0]))
        count, last = open_.get(session, [0, time_ms])
        open_[session] = [count + 1, max(last, time_ms)]
        if is_end:
            expected.append((session, END_EVENT, open_.pop(session)[0]))
        elif count + 1 >= RULES.max_events:
            expected.append((session, END_LIMIT, open_.pop(session)[0]))
    for s in [s for s, (_, last) in open_.items() if last + RULES.gap_ms < watermark]:  # a late event was their first
        expected.append((s, END_GAP, open_.pop(s)[0]))
    walked = walk(events)
    assert sorted(ends_of(walked)) == sorted(expected)
    assert {s: n for s, n in enumerate(walked.clocks.events.tolist()) if n} == {s: n for s, (n, _) in open_.items()}


@settings(deadline=None)
@given(streams, st.integers(0, 40))
def test_a_walk_cut_anywhere_ends_the_same_sessions(steps: list[tuple[int, int, bool]], cut: int) -> None:
    """Two walks over a stream's halves say what one over the whole says."""
    events = as_times(steps)
    whole = walk(events)
    before = walk(events[:cut])
    after = walk(events[cut:], before.clocks, max([NO_WATERMARK, *(time_ms for _, time_ms, _ in events[:cut])]))
    assert sorted(ends_of(before) + ends_of(after)) == sorted(ends_of(whole))
    assert before.gap_ms.tolist() + after.gap_ms.tolist() == whole.gap_ms.tolist()
    assert before.first.tolist() + after.first.tolist() == whole.first.tolist()
    for name in ("events", "first_ms", "last_ms"):
        assert getattr(after.clocks, name).tolist() == getattr(whole.clocks, name).tolist()


@settings(deadline=None)
@given(streams)
def test_sessions_are_numbered_by_their_first_events(steps: list[tuple[int, int, bool]]) -> None:
    """Every operation carries its session's number; a session's operations are its steps and then one end."""
    walked = walk(as_times(steps), close_all=True)
    numbers, begins = number_sessions(walked)
    firsts = [
        int(n) for n, k, r in zip(numbers, walked.kind, walked.record, strict=True) if k == STEP and walked.first[r]
    ]
    assert firsts == list(range(len(firsts)))
    assert begins.tolist() == np.flatnonzero(walked.first).tolist()
    for number in range(len(firsts)):
        kinds = walked.kind[numbers == number].tolist()
        assert kinds[:-1] == [STEP] * (len(kinds) - 1)
        assert kinds[-1] != STEP


def test_long_sessions_count_as_several() -> None:
    """Each piece begins a session of its own; the end belongs to the last."""
    walked = walk([(0, 0, False), (1, 0, False), (0, 1, False), (0, 2, False), (0, 3, True), (1, 4, False)])
    numbers, begins = number_sessions(walked, longest=2)
    assert (numbers.tolist(), begins.tolist()) == ([0, 1, 0, 2, 2, 2, 1], [0, 1, 3])


def test_log_gaps() -> None:
    """A gap enters the model as log(1 + seconds)."""
    assert log_gaps(np.array([0, 1_000, 60_000])).tolist() == [np.float32(math.log1p(s)) for s in (0, 1, 60)]
