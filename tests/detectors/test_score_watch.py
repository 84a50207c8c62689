"""Scores that no longer are what calibration had are told, as what they are; cycles, incidents and chance are not."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.drift_events import DriftEvent
from detectors.intervals import GROUPS
from detectors.score_watch import ScoreState, ScoreWatch, UsualScores

DAY, PER_DAY, TRAINED_DAYS = 86_400_000, 12_000, 4
START = 1_700_006_400_000 // DAY * DAY


class Scores(NamedTuple):
    """p-values, days since `START` and groups of sessions."""

    p: NDArray[np.float64]
    days: NDArray[np.float64]
    group: NDArray[np.int64]

    @property
    def time_ms(self) -> NDArray[np.int64]:
        """Of each."""
        return START + np.round(DAY * self.days).astype(np.int64)


def scores(seed: int, first_day: float, days: float, swing: float = 0.5, per_day: int = PER_DAY) -> Scores:
    """By night more surprising than by day; uniform over all."""
    random, n = np.random.default_rng(seed), int(days * per_day)
    at = np.sort(random.uniform(first_day, first_day + days, n))
    # Raised to a power, a uniform p-value has as many nats of surprise on average.
    power = 1 + swing * np.sin(2 * np.pi * at)
    return Scores(random.uniform(1e-9, 1, n) ** power, at, random.integers(0, GROUPS, n))


def trained(history: Scores) -> ScoreWatch:
    """A watch with what it learned, as a bundle brings it back."""
    usual = ScoreWatch().learn([history.p], [history.time_ms], [history.group])
    return ScoreWatch(UsualScores.from_json(usual.to_json()))


WATCH = trained(scores(0, 0, TRAINED_DAYS))


def told(what: Scores, cuts: tuple[int, ...] = (), *, saved: bool = False) -> tuple[ScoreState, list[DriftEvent]]:
    """State and events of scores in slices, perhaps saved and read back between them."""
    bounds = sorted({0, len(what.p), *(c for c in cuts if c < len(what.p))})
    state, found = None, list[DriftEvent]()
    for low, high in pairwise(bounds):
        state, more = WATCH.update_many(
            state, what.p[low:high], what.time_ms[low:high], what.group[low:high], np.arange(low, high)
        )
        found += more
        if saved and state is not None:
            state = ScoreState.unpack(state.pack())
    assert state is not None
    return state, found


def began(what: Scores) -> list[str]:
    return sorted(event.type for event in told(what)[1] if event.has_begun)


def test_four_weeks_of_a_daily_cycle_are_quiet() -> None:
    """Though surprise at night is thrice that by day, and the tests of the series see changes."""
    assert told(scores(1, TRAINED_DAYS, 28))[1] == []
    assert told(scores(2, TRAINED_DAYS, 28, per_day=2_000))[1] == []


def test_a_world_that_changed_is_both() -> None:
    """Surprise rises, and p-values are no longer uniform: told once each, within a day, with what would help."""
    usual = scores(3, TRAINED_DAYS, 14)
    off = usual._replace(p=np.where(usual.days > 9, usual.p**1.6, usual.p))
    _, found = told(off)
    assert sorted((event.type, event.action) for event in found) == [
        ("calibration_drift", "recalibrate"), ("surprise_drift", "retrain"),
    ]  # fmt: skip
    for event in found:
        assert usual.days[event.offset] < 10
        assert event.since_ms is not None
        assert abs(event.since_ms - START - 9 * DAY) < DAY / 4
        assert event.p_value < 1e-4
        assert event.field is None


def test_a_model_that_has_become_too_mild_is_told() -> None:
    """Nobody is alarmed, and that is why it must be said."""
    usual = scores(4, TRAINED_DAYS, 8)
    assert "calibration_drift" in began(usual._replace(p=np.where(usual.days > 6, usual.p**0.4, usual.p)))


def test_a_stream_that_is_off_from_its_first_record_is_told_as_calibration() -> None:
    """No test of a series can see a change there, but p-values have a distribution to be held against."""
    usual = scores(5, TRAINED_DAYS, 8)
    assert began(usual._replace(p=usual.p**1.6)) == ["calibration_drift"]


def test_incidents_and_odd_sessions_are_no_drift() -> None:
    """Neither two hours of nothing but anomalies, nor one group of sessions that are all anomalies for days."""
    usual = scores(6, TRAINED_DAYS, 8, per_day=60_000)
    incident = (usual.days > 6) & (usual.days < 6.1)
    assert told(usual._replace(p=np.where(incident, 1e-6, usual.p)))[1] == []
    assert told(usual._replace(p=np.where(usual.group == 2, 1e-6, usual.p)))[1] == []


def test_what_ends_is_told_to_have_ended() -> None:
    """Each of the two is told to have ended, once."""
    usual = scores(7, TRAINED_DAYS, 14)
    off = usual._replace(p=np.where((usual.days > 8) & (usual.days < 12), usual.p**2, usual.p))
    _, found = told(off)
    assert sorted((event.type, event.has_begun) for event in found) == [
        ("calibration_drift", False), ("calibration_drift", True), ("surprise_drift", False), ("surprise_drift", True),
    ]  # fmt: skip


def test_constant_p_values_are_watched() -> None:
    """Where calibration had nothing else they are usual; others are told."""
    history = scores(8, 0, TRAINED_DAYS)
    watch = trained(history._replace(p=np.ones_like(history.p)))
    later = scores(9, TRAINED_DAYS, 6)
    args = later.time_ms, later.group, np.arange(len(later.p))
    assert watch.update_many(None, np.ones_like(later.p), *args)[1] == []
    assert "calibration_drift" in [event.type for event in watch.update_many(None, later.p, *args)[1]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60_000), max_size=12), st.booleans(), st.integers(0, 9))
def test_any_slicing_says_the_same(cuts: list[int], saved: bool, seed: int) -> None:
    """Cut anywhere, saved and restored between the slices: the same events at the same offsets, and the same state."""
    usual = scores(seed, TRAINED_DAYS, 5)
    off = usual._replace(p=np.where((usual.days > 5.5) & (usual.days < 7), usual.p**2, usual.p))
    state, found = told(off, tuple(cuts), saved=saved)
    whole_state, whole = told(off)
    assert found == whole
    assert state.pack() == whole_state.pack()
    assert len(whole) >= 2


def test_what_is_remembered_is_bounded() -> None:
    """Less than 8 KB after half a million records, and a damaged state is found."""
    state, _ = told(scores(10, TRAINED_DAYS, 8, per_day=60_000))
    assert len(state.pack()) < 8_192
    for harm in (b"", state.pack()[:40], state.pack()[:-9]):
        with pytest.raises(ValueError, match=r"unpack|buffer|shape"):
            ScoreState.unpack(harm)


def test_without_a_reference_nothing_is_watched() -> None:
    """Bundles of before there was one leave none."""
    what = scores(11, 0, 1)
    assert ScoreWatch().update_many(None, what.p, what.time_ms, what.group, np.arange(len(what.p))) == (None, [])
