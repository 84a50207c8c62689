"""Inputs that change for good are found, in time and by name; daily cycles, incidents and odd sessions are not told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.drift_events import DriftEvent
from detectors.input_watch import InputWatch, UsualInputs
from detectors.intervals import AGREE, BLOCK, GROUPS, LEAST, IntervalState
from features.events import Events
from features.tokens import MISSING, OOV, RARE

DAY, HOUR = 86_400_000, 3_600_000
START = 1_700_006_400_000 // DAY * DAY
TRAINED_DAYS, PER_DAY = 4, 12_000
NAMES = [f"session-{i}" for i in range(300)]


class Stream(NamedTuple):
    """Days since `START`, ids of a token field, a number field and sessions."""

    days: NDArray[np.float64]
    ids: NDArray[np.int32]
    number: NDArray[np.float64]
    session: NDArray[np.int32]

    @property
    def given(self) -> tuple[Events, NDArray[np.int32]]:
        """As the watch takes them."""
        n = len(self.days)
        time_ms = START + np.round(DAY * self.days).astype(np.int64)
        events = Events(
            np.arange(n, dtype=np.int32), 7 + 2 * np.arange(n), time_ms, self.session, NAMES, [[None] * n],
            np.zeros(n, np.bool_), [], 0, 7 + 2 * n, numbers=self.number[:, None],
        )  # fmt: skip
        return events, self.ids[:, None].astype(np.int32)

    def where(self, chosen: NDArray[np.bool_], **changed: NDArray[np.float64] | float) -> Stream:
        """The same with some records changed."""
        return self._replace(**{n: np.where(chosen, v, getattr(self, n)) for n, v in changed.items()})


def stream(seed: int, first_day: float, days: float, per_day: int = PER_DAY, swing: float = 1.0) -> Stream:
    """By day other tokens and higher numbers than by night, evenly many records."""
    random, n = np.random.default_rng(seed), int(days * per_day)
    at = np.sort(random.uniform(first_day, first_day + days, n))
    phase = swing * np.sin(2 * np.pi * at)
    shares = np.stack([0.5 + 0.3 * phase, 0.3 - 0.2 * phase, 0.2 - 0.1 * phase], axis=1)
    ids = (random.random((n, 1)) > np.cumsum(shares, axis=1)).sum(axis=1) + RARE
    return Stream(at, ids.astype(np.int32), random.normal(1.5 * phase, 1), random.integers(0, 300, n, dtype=np.int32))


def trained(history: Stream, **more: int) -> InputWatch:
    """A watch with what it learned, as a bundle brings it back."""
    events, ids = history.given
    learned = InputWatch(("action",), ("ms",), **more).learn([(events, ids, np.zeros(len(events), np.bool_))])
    return InputWatch(("action",), ("ms",), UsualInputs.from_json(learned.to_json()))


WATCH = trained(stream(0, 0, TRAINED_DAYS))


def told(watch: InputWatch, what: Stream) -> list[DriftEvent]:
    return watch.update_many(None, *what.given)[1]


def began(events: list[DriftEvent]) -> list[tuple[str, str | None]]:
    return [(event.type, event.field) for event in events if event.has_begun]


def test_four_weeks_of_a_daily_cycle_are_quiet() -> None:
    """However strong the cycle is, and whether records are few or many; so is the last day before it."""
    assert told(WATCH, stream(1, TRAINED_DAYS, 28)) == []
    for per_day in (1_000, 60_000):
        assert told(WATCH, stream(2, TRAINED_DAYS, 28 if per_day < PER_DAY else 7, per_day)) == []


@pytest.mark.parametrize("days", [1.2, 2.0, 3.0])
def test_a_cycle_that_training_saw_little_of_is_quiet(days: float) -> None:
    """A training of one day knows its swing, if not what each hour is like."""
    watch = trained(stream(3, 0, days, 40_000))
    assert told(watch, stream(4, days, 28, 4_000)) == []


def test_a_training_of_part_of_a_day_asks_for_a_whole_one() -> None:
    """It cannot know what the night is like, so what lasts for a night is no drift; what stays is."""
    watch, later = trained(stream(3, 0, 0.4, 40_000, 0.0)), stream(4, 0.4, 6, 40_000, 0.0)
    night = (later.days > 2) & (later.days < 2.6)
    assert told(watch, later.where(night, number=later.number + 2, ids=RARE)) == []
    off = later.where(later.days > 2, number=later.number + 2)
    (event,) = told(watch, off)
    assert later.days[(event.offset - 7) // 2] - 2 >= 0.9


CHANGE_DAY = TRAINED_DAYS + 5.3
CHANGES: dict[str, tuple[tuple[str, str], Callable[[Stream, NDArray[np.bool_]], Stream]]] = {
    "level": (("input_drift", "ms"), lambda s, later: s.where(later, number=s.number + 0.8)),
    "spread": (("input_drift", "ms"), lambda s, later: s.where(later, number=1.7 * s.number)),
    "gradual": (
        ("input_drift", "ms"), lambda s, later: s.where(later, number=s.number + np.clip(s.days - CHANGE_DAY, 0, 2)),
    ),
    "missing": (("input_drift", "ms"), lambda s, later: s.where(later & (s.session % 3 == 0), number=np.nan)),
    "tokens": (("input_drift", "action"), lambda s, later: s.where(later & (s.session % 3 == 0), ids=RARE + 2)),
    "absent": (("input_drift", "action"), lambda s, later: s.where(later & (s.session % 4 == 0), ids=MISSING)),
    "new": (("unknown_drift", "action"), lambda s, later: s.where(later & (s.session % 5 == 0), ids=OOV)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_stays_is_told_once(change: str) -> None:
    """By its name, within two days, sure, and since about when; nothing else is told."""
    expected, changed = CHANGES[change]
    usual = stream(5, TRAINED_DAYS, 15)
    found = told(WATCH, changed(usual, usual.days >= CHANGE_DAY))
    assert began(found) == [expected]
    (event,) = found
    at_ms = START + DAY * CHANGE_DAY
    days_until = (usual.given[0].time_ms[(event.offset - 7) // 2] - at_ms) / DAY
    assert 3.8 / 24 <= days_until <= (2 if change == "gradual" else 0.6)
    assert event.since_ms is not None
    assert at_ms - 2 * HOUR <= event.since_ms <= at_ms + 30 * HOUR
    assert event.amount > event.limit > event.usual
    assert event.p_value < 1e-6
    assert event.records >= AGREE * LEAST
    assert event.action == "retrain"


def test_what_ends_is_told_to_have_ended() -> None:
    """Once each, and the end asks for nothing but watching."""
    usual = stream(6, TRAINED_DAYS, 12)
    found = told(WATCH, usual.where((usual.days >= 6) & (usual.days < 9), number=usual.number + 1.5))
    assert [(event.has_begun, event.action) for event in found] == [(True, "retrain"), (False, "watch")]
    assert found[0].since_ms == found[1].since_ms


@pytest.mark.parametrize("hours", [0.3, 1, 2.6])
def test_a_single_incident_is_no_drift(hours: float) -> None:
    """However bad: every record an unknown token with a number that never was. Two thirds of four hours are too few."""
    usual = stream(7, TRAINED_DAYS, 7, 60_000)
    bad = (usual.days >= 6.3) & (usual.days < 6.3 + hours / 24)
    assert told(WATCH, usual.where(bad, ids=OOV, number=1e9)) == []


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_few_odd_sessions_are_no_drift(sessions: int) -> None:
    """Not if they have half of the records for days; if all sessions have them, it is one."""
    usual, random = stream(8, TRAINED_DAYS, 6), np.random.default_rng(8)
    odd = (usual.days >= 6) & (random.random(len(usual.days)) < 0.5)
    few = usual.where(odd, ids=OOV, number=50.0, session=random.integers(0, sessions, len(odd)))
    of_few = few._replace(session=few.session.astype(np.int32), ids=few.ids.astype(np.int32))
    assert told(WATCH, of_few) == []
    of_all = began(told(WATCH, usual.where(odd, ids=OOV, number=50.0)))
    assert sorted(of_all) == [("input_drift", "ms"), ("unknown_drift", "action")]


def test_where_there_is_one_session_it_counts() -> None:
    """A stream that is one host's numbers is judged by these."""
    alone = [s._replace(session=np.zeros_like(s.session)) for s in (stream(9, 0, 4), stream(10, 4, 10))]
    watch = trained(alone[0])
    assert told(watch, alone[1]) == []
    assert began(told(watch, alone[1].where(alone[1].days > 8, number=alone[1].number + 1.5))) == [
        ("input_drift", "ms")
    ]


def test_a_stream_that_is_off_from_its_first_record_is_told() -> None:
    """There need be no change while it is watched."""
    usual = stream(11, TRAINED_DAYS, 2)
    (event,) = told(WATCH, usual.where(usual.days > 0, number=usual.number + 2))
    assert event.since_ms == usual.given[0].time_ms[0]


def test_constants_are_watched() -> None:
    """A number and a token that never change are usual; another constant is a drift; both ways."""
    history = stream(12, 0, 4).where(np.bool_(True), number=5.0, ids=RARE)
    watch, later = trained(history), stream(13, 4, 6)
    assert told(watch, later.where(np.bool_(True), number=5.0, ids=RARE)) == []
    for other in (4.9, 5.1):
        assert began(told(watch, later.where(np.bool_(True), number=other, ids=RARE))) == [("input_drift", "ms")]
    assert began(told(WATCH, later.where(np.bool_(True), number=0.0))) == [("input_drift", "ms")]


def test_numbers_missing_throughout_are_usual_where_training_had_none() -> None:
    """And a drift where they come for the first time; zeros and infinities break nothing."""
    history = stream(14, 0, 4).where(np.bool_(True), number=np.nan)
    watch, later = trained(history), stream(15, 4, 6)
    assert told(watch, later.where(np.bool_(True), number=np.nan)) == []
    assert began(told(watch, later)) == [("input_drift", "ms")]
    assert began(told(WATCH, later.where(np.bool_(True), number=np.nan))) == [("input_drift", "ms")]


@pytest.mark.parametrize("back_ms", [HOUR, 400 * DAY])
def test_a_clock_set_back_hides_nothing(back_ms: int) -> None:
    """It is no drift by itself, intervals go on ending, and a change after it is told."""
    usual = stream(16, TRAINED_DAYS, 12)
    events, ids = usual.given
    set_back = replace(events, time_ms=events.time_ms - np.where(usual.days > 7, back_ms, 0))
    assert WATCH.update_many(None, set_back, ids)[1] == []
    changed = replace(set_back, numbers=events.numbers + np.where(usual.days > 9, 2.0, 0.0)[:, None])
    assert began(WATCH.update_many(None, changed, ids)[1]) == [("input_drift", "ms")]


def test_times_far_ahead_do_not_hasten_a_verdict() -> None:
    """One record in a hundred with a time a year ahead ends an interval no sooner than its records allow."""
    usual = stream(17, TRAINED_DAYS, 0.1, 60_000)
    events, ids = usual.given
    ahead = replace(events, time_ms=events.time_ms + np.where(np.arange(len(ids)) % 100 == 0, 365 * DAY, 0))
    state, _ = WATCH.update_many(None, ahead, ids)
    assert state is not None
    assert len(state.levels) <= len(ids) // LEAST


def test_a_short_history_tells_nothing() -> None:
    """Of a thousand records nobody can say what is usual; nor of none, or without a history."""
    watch = trained(stream(18, 0, 0.1, 10_000))
    off = stream(19, 1, 10).where(np.bool_(True), number=9.0)
    assert told(watch, off) == []
    assert told(InputWatch(("action",), ("ms",)), off) == []


def test_how_long_a_change_must_last_can_be_set() -> None:
    """A twentieth of the time, a twentieth of the delay, where records are many."""
    history = stream(20, 0, 4, 100_000)
    usual = stream(21, 4, 1, 400_000)
    off = usual.where(usual.days > 4.5, number=usual.number + 2)
    delays = []
    for watch in (trained(history), trained(history, after_ms=HOUR // 5)):
        (event,) = told(watch, off)
        delays.append(usual.days[(event.offset - 7) // 2] - 4.5)
    assert delays[0] >= 3.8 / 24
    assert delays[1] <= 0.5 / 24


def cut(what: Stream, cuts: list[int], *, saved: bool) -> tuple[IntervalState | None, list[DriftEvent]]:
    """State and events of records in slices, perhaps saved and read back between them."""
    events, ids = what.given
    bounds = sorted({0, len(ids), *(c for c in cuts if c < len(ids))})
    state, found = None, list[DriftEvent]()
    for low, high in pairwise(bounds):
        state, more = WATCH.update_many(state, events.take(np.arange(low, high)), ids[low:high])
        found += more
        if saved and state is not None:
            state = IntervalState.unpack(state.pack())
    return state, found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60_000), max_size=12), st.booleans(), st.integers(0, 9))
def test_any_slicing_says_the_same(cuts: list[int], saved: bool, seed: int) -> None:
    """Cut anywhere, saved and restored between the slices: the same events at the same offsets, and the same state."""
    usual = stream(seed, TRAINED_DAYS, 4)
    off = usual.where((usual.days > 5) & (usual.days < 6.5), number=usual.number + seed, ids=OOV)
    whole_state, whole = cut(off, [], saved=False)
    state, found = cut(off, cuts, saved=saved)
    assert found == whole
    assert state is not None
    assert whole_state is not None
    assert state.pack() == whole_state.pack()
    assert len(whole) == 4 or seed == 0


def test_what_is_remembered_is_bounded() -> None:
    """Two fields take less than 4 KB, 128 with all bins filled less than 200 KB; more are not watched."""
    state, _ = cut(stream(22, 4, 5), [], saved=False)
    assert state is not None
    assert len(state.pack()) < 4_096
    names = tuple(f"n{i}" for i in range(140))
    n = 12_000
    random, usual = np.random.default_rng(23), stream(23, 0, 4)
    events = replace(usual.given[0].take(np.arange(n)), numbers=random.normal(0, 1, (n, 140)), tokens=[])
    none = np.empty((n, 0), np.int32)
    learned = InputWatch((), names).learn([(events, none, np.zeros(n, np.bool_))])
    wide, _ = InputWatch((), names, learned).update_many(None, events, none)
    assert wide is not None
    assert len(wide.records) == 128
    assert len(wide.pack()) < 200_000
    assert IntervalState.unpack(wide.pack()).pack() == wide.pack()


def test_a_damaged_state_is_found() -> None:
    """Rather than read as something else."""
    state, _ = cut(stream(24, 4, 0.1), [], saved=False)
    assert state is not None
    for harm in (b"", b"x", state.pack()[:-9]):
        with pytest.raises(ValueError, match=r"unpack|buffer|shape"):
            IntervalState.unpack(harm)


def test_another_bundle_ends_what_the_one_before_began() -> None:
    """Trained on what came, it finds that usual; the drift that was open is told to have ended."""
    usual = stream(25, TRAINED_DAYS, 12)
    off = usual.where(usual.days > 5, number=usual.number + 2)
    events, ids = off.given
    half = int(np.searchsorted(usual.days, 8))
    state, first = WATCH.update_many(None, events.take(np.arange(half)), ids[:half])
    assert began(first) == [("input_drift", "ms")]
    history = stream(26, 0, 4)
    again = trained(history.where(np.bool_(True), number=history.number + 2))
    _, later = again.update_many(state, events.take(np.arange(half, len(ids))), ids[half:])
    assert [(event.has_begun, event.field, event.since_ms) for event in later] == [(False, "ms", first[0].since_ms)]


def test_groups_are_those_of_names() -> None:
    """Not of places in a slice; all are used."""
    from detectors.input_watch import groups_of

    events, _ = stream(27, 0, 0.1).given
    groups = groups_of(events)
    assert set(groups.tolist()) == set(range(GROUPS))
    one = events.take(np.array([3]))
    assert groups_of(replace(one, session=np.zeros(1, np.int32), sessions=[NAMES[events.session[3]]])) == groups[3]
    assert len(groups_of(events.take(np.empty(0, np.intp)))) == 0
    assert LEAST % BLOCK == 0
