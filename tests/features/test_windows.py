"""Windows hold what they should, and neither slicing nor looking changes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.event_order import NOTHING_HELD, put_in_order
from features.events import Events
from features.sessions import ENDED, NEVER_MS, SessionClocks, SessionRules, walk_sessions
from features.windows import NO_WINDOWS, Windowed, WindowRules, close_windows, next_close_ms, window_columns
from tests.naive_windows import NaiveWindows, Sample

NAN = math.nan
MINUTE = 60_000
ALL = ("mean", "min", "max", "std", "rate", "sum", "count", "p50", "p90", "p95", "p99")


def as_events(samples: list[Sample], sessions: list[str], width: int) -> Events:
    """Samples of so many numbers as columns; `sessions` are all the rows."""
    return Events(
        np.arange(len(samples), dtype=np.int32), np.array([s.offset for s in samples], np.int64),
        np.array([s.time_ms for s in samples], np.int64),
        np.array([sessions.index(s.session) for s in samples], np.int32), sessions,
        [[s.tokens[f] for s in samples] for f in (0, 1)], np.array([s.is_end for s in samples], np.bool_),
        [], 0, None, numbers=np.array([s.numbers for s in samples], np.float64).reshape(len(samples), width),
    )  # fmt: skip


@dataclass
class Partition:
    """What is kept between slices, by session, and all that came of them."""

    rules: WindowRules
    session_rules: SessionRules
    width: int = 2
    watermark_ms: int = -1
    held: dict[str, bytes] = field(default_factory=dict)
    packed: dict[str, bytes] = field(default_factory=dict)
    clocks: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    given: list[dict[str, Any]] = field(default_factory=list)
    too_late: list[int] = field(default_factory=list)
    dropped: int = 0
    walked: list[tuple[Any, ...]] = field(default_factory=list)

    def run(self, samples: list[Sample], *, look_at_all: bool = False, close_all: bool = False) -> Windowed:
        """One slice; of other sessions than its own only when somebody looks."""
        names = list(dict.fromkeys([s.session for s in samples]))
        names += [name for name in self.held | self.packed | self.clocks if look_at_all and name not in names]
        held, packed = (np.zeros(len(names), object) for _ in range(2))
        held[:], packed[:] = (
            [self.held.get(n, NOTHING_HELD) for n in names],
            [self.packed.get(n, NO_WINDOWS) for n in names],
        )
        ordered = put_in_order(
            as_events(samples, names, self.width), held, self.watermark_ms, self.session_rules, close_all=close_all
        )
        self.watermark_ms = ordered.watermark_ms
        done = close_windows(ordered, packed, self.rules, close_all=close_all)
        self._remember(names, ordered.held, done, ordered.events.offsets)
        self._walk(names, done, close_all=close_all)
        return done

    def _remember(self, names: list[str], held: Any, done: Windowed, offsets: Any) -> None:
        for name, h, p in zip(names, held, done.open_windows, strict=True):
            self.held[name], self.packed[name] = h, p
        events = done.ordered.events
        assert events.windows is not None
        for i in range(len(events)):
            self.given.append(
                {
                    "session": names[events.session[i]], "end": int(events.windows[i]),
                    "time_ms": int(events.time_ms[i]), "offset": int(events.offsets[i]),
                    "tokens": tuple(column[i] for column in events.tokens), "ends": bool(events.ends[i]),
                    "numbers": events.numbers[i].tolist(),
                }
            )  # fmt: skip
        self.too_late += offsets[done.too_late].tolist()
        self.dropped += done.dropped
        assert np.all(np.diff(done.ordered.seen_at) >= 0)

    def _walk(self, names: list[str], done: Windowed, *, close_all: bool) -> None:
        clocks = SessionClocks(
            *np.array([self.clocks.get(n, (0, 0, 0)) for n in names], np.int64).reshape(-1, 3).T.copy()
        )
        walk = walk_sessions(done.ordered, clocks, self.session_rules, close_all=close_all)
        after = zip(
            walk.clocks.events.tolist(), walk.clocks.first_ms.tolist(), walk.clocks.last_ms.tolist(), strict=True
        )
        self.clocks |= dict(zip(names, after, strict=True))
        columns = walk.kind, walk.row, walk.record, walk.ended_events, walk.ended_first_ms, walk.ended_last_ms
        for kind, row, record, *ended in zip(*(column.tolist() for column in columns), strict=True):
            what = ended if kind in ENDED else int(done.ordered.events.time_ms[record])
            self.walked.append((names[row], kind, what))


def sample(time_ms: int, *numbers: float, session: str = "a", is_end: bool = False) -> Sample:
    return Sample(session, time_ms, time_ms // 1000, ("cpu", str(time_ms)), is_end, numbers)


def windows_of(samples: list[Sample], rules: WindowRules, *, close_all: bool = True) -> Partition:
    partition = Partition(rules, SessionRules(gap_ms=900_000, max_events=1000), len(samples[0].numbers))
    partition.run(samples, close_all=close_all)
    return partition


def ends_and_numbers(partition: Partition) -> list[tuple[int, list[float]]]:
    return [(window["end"], window["numbers"]) for window in partition.given]


def by_session(listed: list[Any], key: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in listed:
        found.setdefault(item[key], []).append(item)
    return found


def test_tumbling_windows_hold_their_samples_and_gaps_give_none() -> None:
    """A sample is in the window of its time; its event lies at its last moment, and an empty window is not given."""
    rules = WindowRules(MINUTE, MINUTE, ("mean", "min", "max", "std", "last", "sum", "count"))
    found = windows_of([sample(0, 1.0), sample(59_999, 3.0), sample(60_000, 5.0), sample(240_000, 7.0)], rules)
    assert ends_and_numbers(found) == [
        (60_000, [2.0, 1.0, 3.0, 1.0, 3.0, 4.0, 2.0, 2.0]),
        (120_000, [5.0, 5.0, 5.0, 0.0, 5.0, 5.0, 1.0, 1.0]),
        (300_000, [7.0, 7.0, 7.0, 0.0, 7.0, 7.0, 1.0, 1.0]),
    ]
    assert [(w["time_ms"], w["offset"], w["tokens"]) for w in found.given] == [
        (59_999, 59, ("cpu", "59999")), (119_999, 60, ("cpu", "60000")), (299_999, 240, ("cpu", "240000")),
    ]  # fmt: skip


def test_sliding_windows_share_samples() -> None:
    """Of windows of 60 s every 20 s each sample is in three; windows of one last sample have ends of their own."""
    found = windows_of([sample(50_000, 1.0), sample(70_000, 3.0)], WindowRules(MINUTE, 20_000, ("sum",)))
    assert ends_and_numbers(found) == [
        (60_000, [1.0, 1.0]), (80_000, [4.0, 2.0]), (100_000, [4.0, 2.0]), (120_000, [3.0, 1.0]),
    ]  # fmt: skip
    assert [w["offset"] for w in found.given] == [50, 70, 70, 70]


def test_quantiles_lie_between_the_nearest_values() -> None:
    """Of five values the 90th percentile is six tenths of the way from the fourth to the fifth."""
    found = windows_of(
        [sample(i, v) for i, v in enumerate([50.0, 10, 30, 20, 40])], WindowRules(1000, 1000, ("p50", "p90"))
    )
    assert ends_and_numbers(found) == [(1000, [30.0, pytest.approx(46.0), 5.0])]


def test_counters_grow_and_begin_anew() -> None:
    """Growth goes on from window to window; a smaller value is what a counter has grown since it began anew."""
    samples = [sample(0, 100.0), sample(30_000, 160.0), sample(60_000, 190.0), sample(90_000, 20.0)]
    found = windows_of(samples, WindowRules(MINUTE, MINUTE, ("sum", "rate", "max", "count"), counters=(0,)))
    assert ends_and_numbers(found) == [
        (60_000, [60.0, 1.0, 60.0, 1.0, 2.0]),  # of the first sample nobody knows what it grew
        (120_000, [50.0, 50 / 60, 30.0, 2.0, 2.0]),
    ]


def test_counters_are_forgotten_with_their_session() -> None:
    """After an end event, and after the gap, a counter's first sample has no growth."""
    rules = WindowRules(MINUTE, MINUTE, ("sum",), counters=(0,), keep_ms=MINUTE)
    ended = windows_of([sample(0, 1.0), sample(1, 2.0, is_end=True), sample(2, 9.0), sample(3, 11.0)], rules)
    assert ends_and_numbers(ended) == [(60_000, [1.0, 2.0]), (60_000, [2.0, 2.0])]
    assert [w["ends"] for w in ended.given] == [True, False]
    kept = windows_of([sample(0, 1.0), sample(60_000, 5.0)], rules)
    gone = windows_of([sample(0, 1.0), sample(120_000, 5.0)], rules)
    assert kept.given[-1]["numbers"] == [4.0, 1.0]
    assert math.isnan(gone.given[-1]["numbers"][0])


def test_the_rate_of_a_gauge_is_its_change() -> None:
    """From the first value to the last, per second; one value has none."""
    found = windows_of([sample(0, 9.0), sample(2000, 5.0), sample(MINUTE, 4.0)], WindowRules(MINUTE, MINUTE, ("rate",)))
    assert found.given[0]["numbers"] == [-2.0, 2.0]
    assert math.isnan(found.given[1]["numbers"][0])


def test_missing_samples_show() -> None:
    """Aggregates are over numbers that are there; where none is, they are NaN, and the counts tell."""
    found = windows_of([sample(0, NAN, 1.0), sample(1, NAN, NAN)], WindowRules(1000, 1000, ("mean", "count")))
    assert math.isnan(found.given[0]["numbers"][0])
    assert found.given[0]["numbers"][1:] == [0.0, 1.0, 1.0, 2.0]


def test_a_sample_of_closed_windows_is_too_late() -> None:
    """Another session's sample closed the window; what comes for it then is reported and not taken in."""
    samples = [sample(10_000, 1.0), sample(60_000, 2.0, session="b"), sample(20_000, 3.0), sample(61_000, 4.0)]
    found = windows_of(samples, WindowRules(MINUTE, MINUTE, ("sum",)))
    assert found.too_late == [20]
    assert [(w["session"], w["numbers"]) for w in found.given] == [
        ("a", [1.0, 1.0]), ("a", [4.0, 1.0]), ("b", [2.0, 1.0]),
    ]  # fmt: skip


def test_a_session_of_too_many_samples_loses_the_last() -> None:
    """What is kept is bounded, and what is lost is counted."""
    rules = WindowRules(MINUTE, MINUTE, ("sum",), max_samples=3)
    found = windows_of([sample(i, 1.0) for i in range(10)], rules)
    assert (found.given[0]["numbers"], found.dropped) == ([3.0, 3.0], 7)


def test_an_end_event_ends_once() -> None:
    """It closes all windows that it is in, and the last of them has the end."""
    found = windows_of(
        [sample(0, 1.0), sample(30_000, 2.0, is_end=True)], WindowRules(MINUTE, 20_000, ("sum",)), close_all=False
    )
    assert [(w["end"], w["ends"]) for w in found.given] == [
        (20_000, False), (40_000, False), (60_000, False), (80_000, True),
    ]  # fmt: skip
    assert found.packed == {"a": NO_WINDOWS}


def test_a_timer_knows_when_a_window_closes() -> None:
    """At the watermark told nothing happens, one later the window closes; then the counter is kept for its gap."""
    rules = WindowRules(MINUTE, MINUTE, ("sum",), counters=(0,), keep_ms=5_000)
    found = windows_of([sample(10_000, 1.0)], rules, close_all=False)
    assert next_close_ms(found.packed["a"]) == 59_999
    found.watermark_ms = 59_999
    found.run([], look_at_all=True)
    assert not found.given
    found.watermark_ms = 60_000
    done = found.run([], look_at_all=True)
    assert [w["end"] for w in found.given] == [60_000]
    assert done.ordered.events.index.tolist() == [-1]
    assert next_close_ms(found.packed["a"]) == 64_999
    found.watermark_ms = 65_000
    found.run([], look_at_all=True)
    assert found.packed == {"a": NO_WINDOWS}


def test_a_window_is_seen_by_the_sample_that_closed_it() -> None:
    """`index` and `seen_at` are those of the first sample where the watermark had come so far, of whatever session."""
    samples = [sample(0, 1.0), sample(70_000, 1.0, session="b"), sample(80_000, 1.0), sample(130_000, 1.0, session="b")]
    found = Partition(WindowRules(MINUTE, MINUTE, ("sum",)), SessionRules(gap_ms=900_000, max_events=1000), width=1)
    ordered = found.run(samples).ordered
    assert ordered.events.index.tolist() == [1, 3, 3]
    assert ordered.seen_at.tolist() == [70_000, 130_000, 130_000]
    assert ordered.watermarks.tolist() == [59_999, 119_999, 119_999]


def test_an_end_event_is_what_closed_its_windows() -> None:
    """Their `index` is its own, not that of whatever came last."""
    found = Partition(WindowRules(MINUTE, MINUTE, ("sum",)), SessionRules(gap_ms=900_000, max_events=1000), width=1)
    done = found.run([sample(0, 1.0, is_end=True), sample(1_000, 1.0)])
    assert done.ordered.events.index.tolist() == [0]


def test_a_session_that_runs_ahead_closes_its_windows() -> None:
    """A sample released early closes windows that the release watermark has not reached, there and then."""
    rules = SessionRules(gap_ms=900_000, max_events=1000, reorder_ms=3_600_000, reorder_events=1)
    found = Partition(WindowRules(MINUTE, MINUTE, ("sum",)), rules, width=1)
    ahead = [sample(t, 1.0) for t in (0, 61_000, 62_000)]
    done = found.run([*ahead, *(sample(t, 1.0, session="b") for t in (70_000, 71_000))])
    assert [w["end"] for w in found.given] == [60_000]
    assert done.ordered.events.index.tolist() == [2]


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_what_a_session_has_passed_stays_passed(cut: int) -> None:
    """After an end event released early the row keeps no sample, but still knows which windows have closed."""
    rules = SessionRules(gap_ms=900_000, max_events=1000, reorder_ms=3_000, reorder_events=1)
    found = Partition(WindowRules(1_000, 1_000, ("sum",)), rules, width=1)
    samples = [sample(10_000, 1.0, is_end=True), sample(10_100, 1.0), sample(9_500, 1.0)]
    found.run(samples[:cut])
    found.run(samples[cut:], look_at_all=True, close_all=True)
    assert found.too_late == [9]
    assert [w["end"] for w in found.given] == [11_000, 11_000]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5])
def test_an_end_forgets_counters_for_good(cut: int) -> None:
    """Even where the next session's first sample lacks the counter, and a slice ends there."""
    rules = WindowRules(MINUTE, MINUTE, ("sum",), counters=(0,))
    values = [1.0, 2.0, NAN, 9.0, 11.0]
    found = Partition(rules, SessionRules(gap_ms=900_000, max_events=1000), width=1)
    samples = [sample(i, value, is_end=i == 1) for i, value in enumerate(values)]
    found.run(samples[:cut])
    found.run(samples[cut:], look_at_all=True, close_all=True)
    assert ends_and_numbers(found) == [(60_000, [1.0, 2.0]), (60_000, [2.0, 3.0])]


def test_huge_numbers_stay_finite() -> None:
    """Sums and squares of the largest floats are no infinities."""
    found = windows_of([sample(i, 1.7e308 * (-1) ** (i // 2)) for i in range(5)], WindowRules(1000, 1000, ALL))
    assert np.isfinite(found.given[0]["numbers"]).all()


@pytest.mark.parametrize(
    ("given_rules", "sentence"),
    [
        ((60_000, 7_000, ("mean",)), "whole multiple"),
        ((60_000, 120_000, ("mean",)), "whole multiple"),
        ((60_000, 0, ("mean",)), "whole multiple"),
        ((3_600_000, 1_000, ("mean",)), "3600 windows"),
        ((60_000, 60_000, ()), "needs an aggregate"),
        ((60_000, 60_000, ("mean", "mean")), "at most once"),
        ((60_000, 60_000, ("median",)), "'median' is no aggregate"),
        ((60_000, 60_000, ("last",), (0,)), "write rate"),
    ],
)
def test_rules_that_make_no_sense_are_refused(given_rules: tuple[Any, ...], sentence: str) -> None:
    """With a sentence that says what would."""
    with pytest.raises(ValueError, match=sentence):
        WindowRules(*given_rules)


def test_columns_have_names() -> None:
    """Number by number, aggregate by aggregate, then how many samples."""
    rules = WindowRules(1, 1, ("mean", "p99"))
    assert window_columns(("cpu", "io"), rules) == ("cpu.mean", "cpu.p99", "io.mean", "io.p99", "samples")


number = st.sampled_from([NAN, 0.0, 1.0, 2.5, 7.0, 100.0]) | st.floats(-1e6, 1e6)
drawn_samples = st.lists(
    st.tuples(
        st.sampled_from("aabc"), st.sampled_from([0, 1, 300, 1_000]) | st.integers(-4_000, 4_000) | st.just(15_000),
        st.sampled_from(["x", "y", None]), st.sampled_from([False] * 9 + [True]), number, number,
    ),
    max_size=50,
)  # fmt: skip
drawn_rules = st.builds(
    lambda every, overlap, aggregates, share, keep_ms: WindowRules(
        every * overlap, every, aggregates, (1,), share * overlap, keep_ms
    ),
    st.sampled_from([1, 700, 2_000, 5_000]), st.sampled_from([1, 1, 2, 5]),
    st.lists(st.sampled_from(ALL), unique=True, min_size=1).map(tuple), st.sampled_from([1, 3, 200]),
    st.sampled_from([0, 1_000, 6_000]),
)  # fmt: skip
drawn_session_rules = st.builds(
    SessionRules, gap_ms=st.sampled_from([1_000, 6_000]), max_events=st.sampled_from([3, 1_000]),
    max_duration_ms=st.sampled_from([NEVER_MS, 9_000]), reorder_ms=st.sampled_from([0, 500, 3_000]),
    reorder_events=st.sampled_from([1, 3, 16]), allowed_ms=st.sampled_from([None, 0]),
)  # fmt: skip


def as_samples(drawn: list[Any]) -> list[Sample]:
    now, out = 100_000, []
    for offset, (session, step, token, is_end, gauge, counter) in enumerate(drawn):
        now = max(0, now + step)
        out.append(Sample(session, now, offset, (token, str(offset)), is_end, (gauge, counter)))
    return out


@settings(max_examples=300, deadline=None)
@given(drawn_samples, drawn_rules, drawn_session_rules, st.lists(st.tuples(st.integers(1, 9), st.booleans())))
def test_fast_equals_naive_for_any_slicing(
    drawn: list[Any], rules: WindowRules, session_rules: SessionRules, slices: list[tuple[int, bool]]
) -> None:
    """Whatever the slices, and whoever looks: the windows of an eager run over single samples, and its sessions."""
    samples = as_samples(drawn)
    naive, eager = NaiveWindows(rules), Partition(rules, session_rules)
    order = Partition(rules, session_rules)
    for one in [*([s] for s in samples), []]:
        feed(naive, order, one, close_all=not one)
        eager.run(one, look_at_all=True, close_all=not one)

    found = Partition(rules, session_rules)
    rest = samples
    for size, look_at_all in slices:
        found.run(rest[:size], look_at_all=look_at_all)
        rest = rest[size:]
    found.run(rest, look_at_all=True, close_all=True)
    wanted = by_session(naive.given, "session")
    for partition in (eager, found):
        np.testing.assert_equal(by_session(partition.given, "session"), wanted)
        assert sorted(partition.too_late) == sorted(naive.too_late)
        assert partition.dropped == naive.dropped
    assert by_session(found.walked, 0) == by_session(eager.walked, 0)
    assert len({(w["offset"], w["end"]) for w in found.given}) == len(found.given)
    assert not any(found.packed.values())


def feed(naive: NaiveWindows, order: Partition, samples: list[Sample], *, close_all: bool) -> None:
    """Put samples in order and give them to the naive twin, which looks at all sessions then."""
    names = list(dict.fromkeys([*(s.session for s in samples), *order.held]))
    held = np.zeros(len(names), object)
    held[:] = [order.held.get(n, NOTHING_HELD) for n in names]
    ordered = put_in_order(
        as_events(samples, names, order.width), held, order.watermark_ms, order.session_rules, close_all=close_all
    )
    order.watermark_ms, order.held = ordered.watermark_ms, dict(zip(names, ordered.held, strict=True))
    e = ordered.events
    for i in range(len(e)):
        taken = Sample(
            names[e.session[i]], int(e.time_ms[i]), int(e.offsets[i]), tuple(c[i] for c in e.tokens), bool(e.ends[i]),
            tuple(e.numbers[i].tolist()),
        )  # fmt: skip
        naive.take(taken, int(ordered.watermarks[i]))
    naive.look(math.inf if close_all else ordered.release_ms)


def test_input_is_left_untouched() -> None:
    """Samples and bytes given in are the same afterwards."""
    rules = WindowRules(MINUTE, MINUTE, ("sum",), counters=(0,))
    before = windows_of([sample(0, 1.0), sample(1, 2.0)], rules, close_all=False)
    packed = np.array([before.packed["a"]], object)
    events = as_events([sample(2, 5.0), sample(MINUTE, 9.0)], ["a"], 1)
    numbers, copy = events.numbers.copy(), packed.copy()
    ordered = put_in_order(events, np.array([b""], object), -1, SessionRules(gap_ms=1, max_events=9))
    close_windows(ordered, packed, rules)
    np.testing.assert_array_equal(events.numbers, numbers)
    assert packed[0] == copy[0]
