"""Labels that no longer agree with verdicts are told, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.drift_events import DriftEvent
from detectors.label_watch import RECENT, Labelled, LabelState, update_many


def labels(seed: int, *parts: tuple[int, float]) -> list[Labelled]:
    """Labels a minute apart, in stretches with a share of wrong verdicts each."""
    random = np.random.default_rng(seed)
    wrong = np.concatenate([random.random(n) < share for n, share in parts])
    predicted = random.random(len(wrong)) < 0.3
    return [
        Labelled(bool(p), bool(p != w), 60_000 * i, 10 * i)
        for i, (p, w) in enumerate(zip(predicted, wrong, strict=True))
    ]


def told(given_labels: list[Labelled]) -> list[DriftEvent]:
    return update_many(LabelState(), given_labels)[1]


@pytest.mark.parametrize("seed", range(4))
def test_errors_that_come_to_stay_are_told(seed: int) -> None:
    """Once, within two hundred labels, and since about when; and again when they are gone."""
    begins, *ends = told(labels(seed, (800, 0.1), (800, 0.6), (1_500, 0.1)))
    assert (begins.type, begins.has_begun, begins.field, begins.action) == ("concept_drift", True, None, "retrain")
    assert 8_000 < begins.offset < 10_000
    assert begins.since_ms is not None
    assert 60_000 * 700 < begins.since_ms < 60_000 * 950
    assert begins.amount > begins.limit > begins.usual
    assert begins.p_value < 0.001
    assert [event.has_begun for event in ends] == [False]
    assert ends[0].offset > 16_000


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 1.0])
def test_a_model_that_is_as_wrong_as_ever_is_quiet(share: float) -> None:
    """A thousand labels on ten seeds, at any share of errors: what never changes is no drift."""
    assert [event for seed in range(10) for event in told(labels(seed, (1_000, share)))] == []


def test_a_model_that_becomes_better_is_quiet() -> None:
    """That is no reason to retrain."""
    assert told(labels(5, (800, 0.6), (800, 0.05))) == []


def test_few_labels_say_nothing() -> None:
    """Not even if all are errors."""
    assert told(labels(6, (RECENT - 1, 1.0))) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(1, 1_500), max_size=6))
def test_one_by_one_is_all_at_once(seed: int, cuts: list[int]) -> None:
    """Saved and read back between; the state stays below 8 KB."""
    given_labels = labels(seed, (500, 0.1), (500, 0.7), (500, 0.2))
    state, found = LabelState(), list[DriftEvent]()
    for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), len(given_labels)], strict=True):
        state, more = update_many(LabelState.unpack(state.pack()), given_labels[low:high])
        found += more
        assert len(state.pack()) < 8_192
    assert (state, found) == update_many(LabelState(), given_labels)
    with pytest.raises(ValueError, match=r"unpack|buffer|shape"):
        LabelState.unpack(state.pack()[:20])
