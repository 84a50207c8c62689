"""Patterns of anomalies: the same however sliced; what was called normal is no anomaly, and scores stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.absolution import MOST_ABSOLVED, count_of, with_label
from detectors.parts import Parts
from detectors.patterns import hex_of
from detectors.rows import PartitionState
from pipeline.slices import Processed
from tests.detectors.test_occlusion import run
from tests.detectors.test_process import as_events, cut, cuts_of_a_stream, events_of_a_stream

slowly = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def patterns(done: list[Processed]) -> dict[tuple[str, int], int]:
    """By record or session and the offset it is named by."""
    found = {}
    for each in done:
        verdicts, absolved = each.verdicts, each.absolved
        found |= {("record", int(verdicts.events.offsets[i])): p for i, p in absolved.records.items()}
        found |= {("session", int(verdicts.ends.last_offset[e])): p for e, p in absolved.sessions.items()}
    return found


def alarmed(done: list[Processed]) -> set[tuple[str, int]]:
    """What is an anomaly, likewise."""
    found = set()
    for each in done:
        verdicts, ends = each.verdicts, each.verdicts.ends
        found |= {("record", int(o)) for o in verdicts.events.offsets[verdicts.anomaly]}
        found |= {("session", int(o)) for o in ends.last_offset[ends.anomaly]}
    return found


def absolving(*found: int) -> PartitionState:
    absolved = b""
    for pattern in found:
        absolved, _ = with_label(absolved, pattern, is_normal=True)
    return PartitionState(0, absolved=absolved)


@slowly
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream)
def test_slicing_changes_no_pattern(any_parts: Parts, drawn: list[Any], cuts: list[int]) -> None:
    """Whatever is learned and whatever the fields are."""
    parts = replace(any_parts, rate=0.5)
    events = as_events(drawn, parts)
    one, other = patterns(run([events], parts)), patterns(run(cut(events, cuts), parts))
    assert {k: one[k] for k in one.keys() & other.keys()} == {k: other[k] for k in one.keys() & other.keys()}
    assert {k for k in one.keys() ^ other.keys() if k[0] == "record"} == set()
    assert all(0 < pattern < 2**64 for pattern in one.values())


@slowly
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, chosen=st.integers(0, 99))
def test_what_was_called_normal_is_no_anomaly(any_parts: Parts, drawn: list[Any], cuts: list[int], chosen: int) -> None:
    """Those of its pattern and no others; scores and p-values stay, bit by bit, and its passes are others'."""
    parts = replace(any_parts, rate=0.5, explained=1_000)
    events = as_events(drawn, parts)
    before = run(cut(events, cuts), parts)
    named = patterns(before)
    if not named:
        return
    normal = sorted(set(named.values()))[chosen % len(set(named.values()))]
    after = run(cut(events, cuts), parts, absolving(normal))
    assert alarmed(after) == {key for key in alarmed(before) if named[key] != normal}
    assert patterns(after) == named
    for mine, other in zip(after, before, strict=True):
        assert mine.verdicts.score.tobytes() == other.verdicts.score.tobytes()
        assert mine.verdicts.p_value.tobytes() == other.verdicts.p_value.tobytes()
        silenced = len(mine.absolved.normal_records) + len(mine.absolved.normal_sessions)
        told = int(mine.verdicts.anomaly.sum() + mine.verdicts.ends.anomaly.sum())
        assert silenced + told == int(other.verdicts.anomaly.sum() + other.verdicts.ends.anomaly.sum())
        assert sum(mine.occluded.outcomes.values()) == told


def test_a_pattern_is_of_what_came_after_what(parts: Parts) -> None:
    """The same token after the same token has one name, in any session; after another it has another."""
    asked = replace(parts, rate=1.0)
    drawn = [(s, 1, (a, "ok"), False, ()) for s in "ab" for a in ("view", "teleport")] + [
        ("c", 1, (a, "ok"), False, ()) for a in ("pay", "teleport")
    ]
    found = patterns(run([as_events(drawn, asked)], asked))
    # What most of the score is due to may be either field, so only those alike are held to be alike.
    assert found["record", 2] == found["record", 6]
    assert found["record", 2] != found["record", 10]
    assert hex_of(found["record", 2]) == f"{found['record', 2]:016x}"


def test_the_latest_labels_are_kept() -> None:
    """So many and no more; one that is said again is the latest again, and an anomaly is forgotten."""
    absolved, forgotten = b"", 0
    for pattern in range(1, MOST_ABSOLVED + 3):
        absolved, dropped = with_label(absolved, pattern, is_normal=True)
        forgotten += dropped
    assert (count_of(absolved), forgotten) == (MOST_ABSOLVED, 2)
    assert np.frombuffer(absolved, "<u8").tolist() == list(range(3, MOST_ABSOLVED + 3))
    again, _ = with_label(absolved, 3, is_normal=True)
    assert np.frombuffer(again, "<u8").tolist() == [*range(4, MOST_ABSOLVED + 3), 3]
    gone, dropped = with_label(again, 4, is_normal=False)
    assert (count_of(gone), dropped) == (MOST_ABSOLVED - 1, 0)
    assert with_label(gone, 4, is_normal=False) == (gone, 0)
