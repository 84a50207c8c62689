"""Incidents: few where all is normal, one where much is wrong, and the same however the log is cut."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_

from detectors.incident_report import Report
from detectors.incident_state import (
    MOST_GROUPS,
    MOST_MUTES,
    MOST_OPEN,
    IncidentState,
    Maintenance,
    Mute,
    Notice,
    UnknownVersionError,
    changed_rows,
    read_rows,
)
from detectors.incidents import (
    DAY_MS,
    IncidentRules,
    add_mute,
    advance,
    advance_many,
    close_quiet,
    remove_mute,
)

START_MS, RATE = 1_700_000_000_000, 0.001
MINUTE_MS = 60_000
RULES = IncidentRules()
LARGEST_ROW = 256 << 10


def notice(number: int, at_ms: int, *, p_value: float = RATE / 100, decisions: int = 100_000, **more: Any) -> Notice:
    """An anomaly `at_ms` after the start, of a stream that by then had taken so many decisions, over a day."""
    about: dict[str, Any] = {
        "id": f"orders/t/0/{number}/record", "stream": "orders", "session": f"s-{number}", "type": "record",
        "time_ms": START_MS + at_ms, "p_value": p_value, "rate": RATE, "decisions": decisions,
        "since_ms": START_MS - DAY_MS, "topic": "t", "partition": 0, "offset": number,
        "top": (("status", 0.8), ("action", 0.2)), "observed": {"status": "failed"}, "logged_ms": START_MS + at_ms,
    }  # fmt: skip
    return Notice(**about | more)


def burst(first: int, at_ms: int, count: int, **more: Any) -> list[Notice]:
    """Anomalies one second apart."""
    return [notice(first + i, at_ms + 1_000 * i, decisions=100_000 + i, **more) for i in range(count)]


def normal(seed: int, streams: int, partitions: int, per_s: float, days: float, *, swing: float = 0.0) -> list[Notice]:
    """False alarms of streams on which all is normal: uniform p-values, as Poisson processes, with a daily cycle."""
    rng, found = random.Random(seed), list[tuple[float, int, int, float]]()
    for stream in range(streams):
        for partition in range(partitions):
            at_ms, taken, a_ms = 0.0, 0.0, per_s / 1000 / partitions
            while True:
                pace = a_ms * (1 + swing * math.sin(2 * math.pi * at_ms / DAY_MS))
                passed_ms = rng.expovariate(pace * RATE)
                at_ms, taken = at_ms + passed_ms, taken + passed_ms * pace
                if at_ms > days * DAY_MS:
                    break
                found.append((at_ms, stream, partition, taken))
    return [
        notice(
            n, int(at_ms), p_value=RATE * (1 - rng.random()), decisions=int(taken) + 1, since_ms=START_MS,
            partition=partition, stream=f"stream-{stream}", topic=f"t{stream}",
        )
        for n, (at_ms, stream, partition, taken) in enumerate(sorted(found))
    ]  # fmt: skip


def changes_of(notices: Iterable[Notice], state: IncidentState | None = None) -> tuple[list[Report], IncidentState]:
    """What they change, and the state after them."""
    advanced = advance_many(state or IncidentState(), notices, RULES)
    return advanced.changes, advanced.state


def opened(changes: Iterable[Report]) -> list[Report]:
    """Those that tell of a new incident."""
    return [change for change in changes if change.change == "opened"]


# --- the promise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "partitions", "per_s", "days", "swing"),
    [
        (1, 1, 30.0, 10, 0.0),
        (1, 16, 30.0, 10, 0.0),
        (10, 4, 3.0, 10, 0.0),
        (1, 4, 30.0, 10, 0.8),
        (20, 1, 0.1, 30, 0.0),
    ],
)
def test_false_incidents_keep_their_budget(
    streams: int, partitions: int, per_s: float, days: int, swing: float
) -> None:
    """Where all is normal, there is at most one incident a day, over many partitions, streams and hours of a day."""
    changes, _ = changes_of(normal(1, streams, partitions, per_s, days, swing=swing))
    assert len(opened(changes)) <= days


def test_more_allowed_false_incidents_are_found_sooner() -> None:
    """A larger budget opens an incident after fewer anomalies."""

    def needed(rules: IncidentRules) -> int:
        state, quiet = IncidentState(), normal(2, 1, 1, 30.0, 1)
        state = advance_many(state, quiet, rules).state
        for count in range(1, 100):
            state, changes = advance(
                state, notice(10**6 + count, DAY_MS, decisions=3_000_000, stream="stream-0"), rules
            )
            if changes:
                return count
        raise AssertionError

    assert needed(IncidentRules(false_per_day=100.0)) < needed(IncidentRules(false_per_day=0.1)) <= 8


def test_a_quiet_stream_opens_on_one_strong_anomaly_and_a_busy_one_on_many() -> None:
    """How much it takes depends on how many false alarms are due."""
    quiet = normal(3, 1, 1, 0.01, 5)
    _, state = changes_of(quiet)
    assert opened(changes_of([notice(10**6, 5 * DAY_MS, decisions=5_000, stream="stream-0")], state)[0])
    _, state = changes_of(normal(3, 1, 1, 100.0, 1))
    assert not changes_of([notice(10**6, DAY_MS, decisions=9 * 10**6, stream="stream-0")], state)[0]


def test_a_burst_is_found_within_few_anomalies() -> None:
    """Among 2,600 false alarms a day, a burst of anomalies a hundred times rarer opens one incident by its sixth."""
    _, state = changes_of(normal(4, 1, 4, 30.0, 1))
    found = burst(10**6, DAY_MS, 6, stream="stream-0")
    changes, _ = changes_of([with_(n, decisions=650_000, partition=i % 4) for i, n in enumerate(found)], state)
    assert len(opened(changes)) == 1


def test_one_session_that_stays_wrong_is_one_piece_of_evidence() -> None:
    """Eight anomalies in eight sessions are an incident; in one session they are not yet."""
    _, state = changes_of(normal(4, 1, 1, 30.0, 1))
    eight = [with_(n, decisions=2_600_000) for n in burst(10**6, DAY_MS + MINUTE_MS, 8, stream="stream-0")]
    assert opened(changes_of(eight, state)[0])
    assert not opened(changes_of([with_(n, session="only") for n in eight], state)[0])


def test_evidence_does_not_outlive_the_quiet_that_ends_an_incident() -> None:
    """Anomalies that would open an incident together do not, where each comes after `quiet` without one."""
    _, state = changes_of(normal(4, 1, 1, 30.0, 1))
    eight = [with_(n, decisions=2_600_000) for n in burst(10**6, 0, 8, stream="stream-0")]
    gap_ms = RULES.quiet_ms
    apart = [with_(n, time_ms=START_MS + DAY_MS + gap_ms * (i + 1)) for i, n in enumerate(eight)]
    assert not opened(changes_of(apart, state)[0])
    near = [with_(n, time_ms=START_MS + DAY_MS + gap_ms + 1_000 * i) for i, n in enumerate(eight)]
    assert opened(changes_of(near, state)[0])


# --- what belongs together -------------------------------------------------------------------------------------------


def test_streams_that_go_wrong_together_are_one_incident() -> None:
    """A burst over two streams opens one incident, which names both, the earlier one as its likeliest cause."""
    later = burst(100, 30_000, 30, stream="spans", segment="pay", topic="u")
    both = sorted([*burst(1, 0, 30), *later], key=lambda n: n.time_ms)
    changes, state = changes_of(both)
    assert [change.change for change in changes][:1] == ["opened"]
    assert len(opened(changes)) == 1
    done = close_quiet(state, START_MS + 30 * MINUTE_MS, RULES).changes[-1]
    assert (done.change, done.streams, done.segments) == ("closed", ["orders", "spans"], ["pay"])
    assert (done.anomalies, done.sessions, done.causes[0].stream) == (60, 60, "orders")
    assert done.causes[0].since_ms == START_MS
    assert done.causes[0].field == "status"
    assert done.id == "orders/t/0/1/record/incident"
    assert (done.start_ms, done.end_ms) == (START_MS, both[-1].time_ms)
    assert len(done.examples) == 5
    assert {example.stream for example in done.examples} == {"orders", "spans"}
    assert sum(contributor.share for contributor in done.contributors) == pytest.approx(1.0)
    assert "60 anomalies in 60 sessions" in done.summary


def test_what_lies_apart_is_apart_and_closes_by_event_time() -> None:
    """After `quiet` without anomalies the next burst is another incident, and closes the first."""
    changes, _ = changes_of([*burst(1, 0, 20), *burst(100, 60 * MINUTE_MS, 20)])
    assert [c.change for c in changes if c.change != "updated"] == ["opened", "closed", "opened"]
    closed = next(c for c in changes if c.change == "closed")
    assert (closed.anomalies, closed.end_ms) == (20, START_MS + 19_000)


def test_a_shared_session_merges_incidents() -> None:
    """Two incidents minutes apart become one when a session turns out to be in both; the older goes on."""
    first, second = burst(1, 0, 20), burst(100, 5 * MINUTE_MS, 20, stream="spans", topic="u")
    changes, state = changes_of([*first, *second])
    assert [c.change for c in changes if c.change != "updated"] == ["opened", "opened"]
    shared = notice(500, 5 * MINUTE_MS + 30_000, stream="spans", session="s-1", topic="u", decisions=100_050)
    changes, state = changes_of([shared], state)
    assert [(c.change, c.id, c.merged_into) for c in changes] == [
        ("merged", "orders/t/0/100/record/incident", "orders/t/0/1/record/incident"),
        ("updated", "orders/t/0/1/record/incident", None),
    ]
    assert changes[-1].anomalies == 41
    assert len(state.incidents) == 1


def test_a_long_incident_stays_one_and_gets_worse() -> None:
    """Six hours without an end are one incident with few messages; severity only rises."""
    changes, state = changes_of(burst(1, 0, 6 * 3_600))
    assert len(opened(changes)) == 1
    assert len(changes) <= 6 * 12 + 20
    levels = [("low", "medium", "high", "critical").index(c.severity) for c in changes]
    assert levels == sorted(levels)
    assert changes[-1].severity == "high"
    assert [c.revision for c in changes] == list(range(1, len(changes) + 1))
    assert len(state.incidents) == 1


def test_scopes_do_not_meet() -> None:
    """Incidents of two scopes stay apart, though they happen together."""
    two = sorted([*burst(1, 0, 20, scope="a"), *burst(100, 0, 20, scope="b")], key=lambda n: n.time_ms)
    assert Counter(c.scope for c in opened(changes_of(two)[0])) == {"a": 1, "b": 1}


# --- the log decides -------------------------------------------------------------------------------------------------


@st.composite
def logs(draw: st.DrawFn) -> list[Notice]:
    """Notices of a few streams, sessions and partitions, in no order of time; some come twice."""
    n, at_ms, found, taken = draw(st.integers(1, 60)), 0, list[Notice](), Counter[tuple[str, int]]()
    for number in range(n):
        at_ms += draw(st.sampled_from([0, 10, 1_000, 60_000, 700_000, -30_000, -90_000_000]))
        stream, partition = draw(st.sampled_from(["a", "b", "c"])), draw(st.integers(0, 1))
        taken[stream, partition] += draw(st.sampled_from([1, 100, 5_000]))
        found.append(
            notice(
                number, at_ms, stream=stream, partition=partition, topic=stream,
                session=draw(st.sampled_from("uvwxyz")), p_value=draw(st.floats(1e-9, RATE)),
                decisions=taken[stream, partition],
                segment=draw(st.sampled_from([None, "eu"])), logged_ms=START_MS + 1_000 * number,
                scope=draw(st.sampled_from(["", "x"])),
            )
        )  # fmt: skip
        if draw(st.booleans()):
            found.append(draw(st.sampled_from(found)))
    return found


def saved_and_restored(saved: dict[bytes, bytes], before: IncidentState, after: IncidentState) -> IncidentState:
    """The state as it is read back after what changed was written over what was saved."""
    for key, value in changed_rows(before, after).items():
        if value is None:
            saved.pop(key, None)
        else:
            assert len(value) <= LARGEST_ROW
            saved[key] = value
    return read_rows(saved)


@given(logs(), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_and_restore_gives_the_same(log: list[Notice], data: st.DataObject) -> None:
    """However the log is cut, and saved and read back in between, changes and state are those of one walk."""
    whole, at_end = changes_of(log)
    state, found, saved, begin = IncidentState(), list[Report](), dict[bytes, bytes](), 0
    while begin < len(log):
        end = data.draw(st.integers(begin + 1, len(log)))
        changes, after = changes_of(log[begin:end], state)
        state, begin = saved_and_restored(saved, state, after), end
        found += changes
    assert found == whole
    assert state == at_end


@given(logs())
@settings(max_examples=40, deadline=None)
def test_what_came_twice_changes_nothing(log: list[Notice]) -> None:
    """Notices that a crash sends again are passed over, and the state before is left untouched."""
    once = list({n.id: n for n in reversed(log)}.values())[::-1]
    first, state = changes_of(once)
    untouched = state.copy()
    again = advance_many(state, log, RULES)
    assert again.changes == []
    assert again.state == state == untouched
    assert again.outcomes == {"doubled": len(log)}
    assert first == changes_of([*once, *once])[0]


@given(logs())
@settings(max_examples=40, deadline=None)
def test_incidents_begin_once_and_end_once(log: list[Notice]) -> None:
    """Each incident opens once, counts its revisions without a hole, and after its end nothing is heard of it."""
    changes, state = changes_of(log)
    changes += close_quiet(state, START_MS + 10**12, RULES).changes
    told: dict[str, list[Report]] = {}
    for change in changes:
        told.setdefault(change.id, []).append(change)
    for reports in told.values():
        assert [r.revision for r in reports] == list(range(1, len(reports) + 1))
        assert reports[0].change == "opened"
        assert [r.change in {"closed", "merged"} for r in reports] == [False] * (len(reports) - 1) + [True]


def test_a_row_of_a_newer_release_is_refused() -> None:
    """Nobody reads as this version what another has written."""
    rows = changed_rows(IncidentState(), changes_of(burst(1, 0, 3))[1])
    with pytest.raises(UnknownVersionError):
        read_rows({key: b"\x63" + value[1:] for key, value in rows.items() if value is not None})


# --- bounds ----------------------------------------------------------------------------------------------------------


def flood(count: int, *, segments: int, sessions: int) -> Iterator[Notice]:
    """A million anomalies a minute, say."""
    for i in range(count):
        yield notice(
            i, i * 60 // 1_000, decisions=i, session=f"s-{i % sessions}", segment=f"g-{i % segments}", since_ms=START_MS
        )


@pytest.mark.parametrize(("segments", "sessions"), [(1, 10**9), (100, 10**9), (1, 50)])
def test_a_flood_is_one_incident(segments: int, sessions: int) -> None:
    """A million anomalies a minute are one incident, told a few times, and little is kept of them."""
    state, changes = IncidentState(), list[Report]()
    all_of_it = list(flood(100_000, segments=segments, sessions=sessions))
    for begin in range(0, len(all_of_it), 5_000):
        advanced = advance_many(state, all_of_it[begin : begin + 5_000], RULES)
        state, changes = advanced.state, changes + advanced.changes
    assert len(opened(changes)) == 1
    assert len(changes) < 10
    kept = [value for value in changed_rows(IncidentState(), state).values() if value is not None]
    assert max(map(len, kept)) <= LARGEST_ROW
    assert sum(map(len, kept)) < 2 << 20


def test_many_segments_push_out_the_oldest() -> None:
    """There is a bound on groups, also where all of them are in incidents; what is forgotten is counted."""
    _, state = changes_of(flood(3 * MOST_GROUPS, segments=10**9, sessions=10**9))
    assert len(state.groups) <= MOST_GROUPS
    assert state.counts.forgotten_groups > 0
    wild = [
        n for g in range(MOST_GROUPS + 10)
        for n in burst(100 * g, 0, 8, segment=f"g-{g}", since_ms=START_MS - 10 * DAY_MS, topic=f"t{g}")
    ]  # fmt: skip
    changes, state = changes_of(wild)
    assert len(state.groups) <= MOST_GROUPS
    assert len(state.incidents) <= MOST_OPEN
    assert max(len(c.streams) + len(c.segments) + len(c.session_names) for c in changes) <= 60


def test_a_clock_set_back_neither_opens_nor_keeps_open() -> None:
    """Normal streams keep their budget when all clocks go back by a day, and an incident from before closes."""
    three_days = normal(5, 1, 4, 30.0, 3)
    taken = {n.partition: n.decisions for n in three_days}
    wrong = [with_(n, partition=9) for n in burst(10**6, 3 * DAY_MS, 20, stream="stream-0")]
    changes, state = changes_of([*three_days, *wrong])
    assert changes[-1].change in {"opened", "updated"}
    back = [
        with_(
            n, id=f"again/{n.id}", decisions=n.decisions + taken[n.partition], time_ms=n.time_ms + 2 * DAY_MS,
            logged_ms=n.logged_ms + 3 * DAY_MS,
        )
        for n in normal(6, 1, 4, 30.0, 2)
    ]  # fmt: skip
    after, _ = changes_of(back, state)
    assert next(c.id for c in after if c.change == "closed") == changes[-1].id
    assert len(opened(after)) <= 2


def test_the_log_read_to_its_end_closes_what_is_quiet() -> None:
    """The idle clock closes only what nothing has come to for `quiet`."""
    _, state = changes_of(burst(1, 0, 20))
    assert not close_quiet(state, START_MS + 5 * MINUTE_MS, RULES).changes
    done = close_quiet(state, START_MS + 11 * MINUTE_MS, RULES)
    assert [c.change for c in done.changes] == ["closed"]
    assert not done.state.incidents


# --- suppression -----------------------------------------------------------------------------------------------------


def test_maintenance_keeps_anomalies_from_counting() -> None:
    """In its span, and for its streams, nothing opens; what was kept from counting is counted and shown."""
    window = Maintenance(START_MS, START_MS + 10 * MINUTE_MS, streams=("orders",))
    rules = IncidentRules(maintenance=(window,))
    advanced = advance_many(IncidentState(), burst(1, 0, 30), rules)
    assert not advanced.changes
    assert advanced.outcomes == {"suppressed": 30}
    kept = advanced.state.suppressed[window.id]
    assert (kept.count, len(kept.last), kept.last[-1].id) == (30, 20, "orders/t/0/30/record")
    other = advance_many(advanced.state, burst(100, 0, 30, stream="spans"), rules)
    assert [c.change for c in other.changes][:1] == ["opened"]
    assert opened(advance_many(advanced.state, burst(200, 10 * MINUTE_MS, 30), rules).changes)


@pytest.mark.parametrize(
    ("about", "matches"),
    [
        ({"stream": "orders"}, True), ({"stream": "spans"}, False), ({"segment": "eu"}, False),
        ({"field": "status", "value": "failed"}, True), ({"field": "status", "value": "ok"}, False),
        ({"field": "status"}, True), ({"field": "amount"}, False), ({"session": "s-1"}, True),
        ({"stream": "orders", "session": "s-2"}, False),
    ],
)  # fmt: skip
def test_a_mute_matches_what_it_names(about: dict[str, str], matches: bool) -> None:
    """All that a mute names must be so, until it is over."""
    mute = Mute("m", START_MS + 1_000, "known", "me", START_MS, **about)
    assert mute.matches(notice(1, 999)) is matches
    assert not mute.matches(notice(1, 1_000))


def test_a_mute_is_counted_on_the_incident_and_can_be_removed() -> None:
    """What a mute suppresses while an incident is open is counted there; without it anomalies count again."""
    _, state = changes_of(burst(1, 0, 20))
    muted = add_mute(state, Mute("m", START_MS + DAY_MS, "known", "me", START_MS, field="status", value="failed"))
    _, after = changes_of(burst(100, 20_000, 5), muted)
    (incident,) = after.incidents.values()
    assert incident.suppressed == 5
    assert after.suppressed["m"].count == 5
    assert advance_many(remove_mute(after, "m"), [notice(900, 30_000)], RULES).outcomes == {"counted": 1}
    assert remove_mute(after, "nothing").mutes == after.mutes


def test_mutes_are_bounded() -> None:
    """Beyond a thousand in force a mute is refused and counted; those that are over make room."""
    state = IncidentState()
    for i in range(MOST_MUTES + 1):
        state = add_mute(state, Mute(f"m{i}", START_MS + 1_000, "", "", START_MS))
    assert len(state.mutes) == MOST_MUTES
    assert state.counts.refused_mutes == 1
    later = add_mute(state, Mute("new", START_MS + DAY_MS, "", "", START_MS + 2_000))
    assert list(later.mutes) == ["new"]
