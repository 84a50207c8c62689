"""What is held back is scored the same whatever the slices, and the strangest of it can be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detectors.held_back import HeldBack, score_held_back
from detectors.history import find_sessions
from detectors.parts import Parts
from detectors.process import process_batch
from detectors.rows import PartitionState, SessionRows
from tests.detectors.test_process import (
    as_columns,
    as_events,
    columns_of,
    events_of_a_stream,
    make_window_parts,
    property_test,
    rules_of_a_stream,
    with_rules,
)  # fmt: skip


def as_sets(scores: HeldBack) -> tuple[list[Any], list[Any]]:
    """Scores with their sessions, in an order that does not depend on slices."""
    return (
        sorted(zip(scores.of_record.tolist(), scores.records.tolist(), strict=True)),
        sorted(zip(scores.of_session.tolist(), scores.sessions.tolist(), strict=True)),
    )


@property_test
@given(
    drawn=events_of_a_stream.filter(len), most=st.integers(1, 20), rules=st.none() | rules_of_a_stream,
    longest=st.sampled_from([2, 100]), seed=st.integers(0, 3),
)  # fmt: skip
def test_any_slices_give_the_scores_of_one(
    drawn: list[Any], most: int, rules: dict[str, Any] | None, longest: int, seed: int, any_parts: Parts
) -> None:
    """Each score belongs to the same session, and those of records are what `process_batch` gives of all at once."""
    parts = any_parts if rules is None else with_rules(any_parts, rules)
    columns = as_columns(as_events(drawn, parts), columns_of(parts))
    history = find_sessions([columns], parts, longest)
    chosen = np.random.default_rng(seed).random(len(history.first_ms)) < 0.6
    whole, sliced = (score_held_back(history, chosen, parts, at_once) for at_once in (1_000, most))
    assert as_sets(sliced) == as_sets(whole)
    (partition,) = history.partitions
    rows = SessionRows.empty(len(columns.sessions), parts.shape)
    verdicts, _, _ = process_batch(columns, rows, PartitionState(0), parts, close_all=True)
    assert sorted(whole.records.tolist()) == sorted(verdicts.score[partition.records(chosen)].tolist())


@property_test
@given(drawn=events_of_a_stream.filter(len), most=st.integers(1, 20), rules=rules_of_a_stream)
def test_windows_are_scored_the_same_in_any_slices(drawn: list[Any], most: int, rules: dict[str, Any]) -> None:
    """Windows that stay open from slice to slice give the scores of one slice."""
    parts = make_window_parts(rules, 4_000, 2, gaps=False)
    samples = [replace(e, numbers=(*e.numbers, 0.0, 0.0)[:2]) for e in as_events(drawn, parts)]
    history = find_sessions([as_columns(samples, 2)], parts)
    chosen = np.ones(len(history.first_ms), np.bool_)
    whole, sliced = (score_held_back(history, chosen, parts, at_once) for at_once in (1_000, most))
    assert as_sets(sliced) == as_sets(whole)


def test_scores_are_raised_within_their_segment() -> None:
    """What the model that serves finds usual in one segment makes nothing usual in another."""
    segments = np.array(["a"] * 40 + ["b"] * 40 + [None] * 40, object)
    none, scores = np.zeros(120, np.int32), np.repeat([1, 2, 3], 40).astype(np.float32)
    own = np.repeat([9, 0, 5], 40).astype(np.float32)
    theirs = HeldBack(scores, none, scores[:80], none[:80], segments, segments[:80])
    raised = theirs.raised_to(HeldBack(own, none, own[:80], none[:80], segments, segments[:80]))
    assert raised.records.tolist() == [9] * 40 + [2] * 40 + [5] * 40
    assert raised.sessions.tolist() == [9] * 40 + [2] * 40


def test_the_strangest_sessions_are_left_out() -> None:
    """A quarter of four is the one with the strangest record, with all of it and its end; of none nothing goes."""
    scores = HeldBack(
        np.array([1, 9, 5, 5, 2, 2, 8], np.float32), np.array([4, 4, 7, 7, 8, 8, 9], np.int32),
        np.array([9, 5, 8], np.float32), np.array([4, 7, 9], np.int32),
        np.array(list("aabbccd")), np.array(list("abd")),
    )  # fmt: skip
    kept = scores.without_the_strangest(0.25)
    assert kept.of_record.tolist() == [7, 7, 8, 8, 9]
    assert (kept.records.tolist(), kept.sessions.tolist()) == ([5, 5, 2, 2, 8], [5, 8])
    assert as_sets(scores.without_the_strangest(0)) == as_sets(scores)
