"""Inputs and scores are watched together: one state, saved as one row, and nothing where nothing was learned."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.drift_watch import DriftState, DriftWatch, Scored, UsualDrift
from detectors.input_watch import InputWatch
from detectors.kept import READERS
from detectors.score_watch import ScoreWatch
from tests.detectors.test_input_watch import TRAINED_DAYS, Stream, stream
from tests.detectors.test_score_watch import scores


def usual() -> UsualDrift:
    """What both learned of four days."""
    events, ids = stream(0, 0, TRAINED_DAYS).given
    of_scores = scores(0, 0, TRAINED_DAYS)
    return UsualDrift(
        InputWatch(("action",), ("ms",)).learn([(events, ids, np.zeros(len(ids), np.bool_))]),
        ScoreWatch().learn([of_scores.p], [of_scores.time_ms], [of_scores.group]),
    )


def scored(seed: int, of: Stream) -> Scored:
    """p-values of the same times."""
    found = scores(seed, TRAINED_DAYS, 1)
    return Scored(found.p, found.time_ms, found.group, np.arange(len(found.p)))


def test_both_are_told_and_saved() -> None:
    """Levels of each kind come with each interval; the state comes back as it was, by the detectors' register."""
    watch = DriftWatch.of(("action",), ("ms",), UsualDrift.from_json(usual().to_json()), None)
    later = stream(1, TRAINED_DAYS, 1)
    off = later.where(later.days > 0, number=later.number + 2)
    state, drifted = watch.update_many(DriftState(), *off.given, scored(1, off))
    assert [(event.type, event.field) for event in drifted.events] == [("input_drift", "ms")]
    levels = {(field, kind): level for field, kind, level in drifted.levels}
    assert set(levels) == {
        ("action", "distribution"), ("action", "unknown"), ("ms", "distribution"), ("ms", "unknown"),
        ("p_value", "distribution"), ("p_value", "surprise"),
    }  # fmt: skip
    assert levels["ms", "distribution"] > 1 > levels["p_value", "distribution"]
    again = READERS["drift"](state.pack())
    assert again == state
    assert len(state.pack()) < 16_384
    nothing = Scored(np.empty(0), *(np.empty(0, np.int64) for _ in range(3)))
    events, ids = off.given
    assert watch.update_many(state, events.take(np.arange(0)), ids[:0], nothing)[0] is state


def test_another_version_begins_anew_and_damage_is_found() -> None:
    """As the register of detectors asks."""
    packed = DriftState().pack()
    assert DriftState.unpack(packed) == DriftState()
    assert DriftState.unpack(bytes([packed[0] + 1]) + packed[1:]) is None
    with pytest.raises(ValueError, match="unpacked"):
        DriftState.unpack(packed[:3])


def test_without_a_reference_nothing_is_watched() -> None:
    """A bundle of before there was one."""
    later = stream(2, TRAINED_DAYS, 1)
    state = DriftState()
    watched, drifted = DriftWatch.of(("action",), ("ms",), None, None).update_many(
        state, *later.given, scored(2, later)
    )
    assert watched is state
    assert (drifted.events, drifted.levels) == ((), ())
