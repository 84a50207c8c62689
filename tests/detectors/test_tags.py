"""Tags: the filter is Bayes' rule, stretches hold together, and normal sessions have few."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.tags import HIGH, Tags, tag_walk
from features.sessions import END_EVENT, LATE, STEP, SessionClocks, Walk

RATE = 0.001


def walk_of(kinds: list[int], rows: list[int], first: list[bool]) -> Walk:
    """Operations on sessions; each but an end is of the next record."""
    m, nothing = len(kinds), np.zeros(len(kinds), np.int64)
    record = np.cumsum([kind != END_EVENT for kind in kinds]) - 1
    none = np.zeros(max(rows) + 1, np.int64)
    return Walk(
        np.array(kinds, np.int8), np.array(rows, np.int32), record.astype(np.int32), np.array(first),
        np.zeros(m, np.int64), nothing, nothing, nothing, SessionClocks(none, none, none),
    )  # fmt: skip


def tag_one_session(p_values: list[float], rate: float = RATE) -> tuple[list[str | None], Tags]:
    """Tags of a session from its first record on."""
    n = len(p_values)
    walk = walk_of([STEP] * n, [0] * n, [True] + [False] * (n - 1))
    tags, _ = tag_walk(walk, np.array(p_values), np.zeros(1, np.float32), rate)
    return [tags.of(o)["tag"] for o in range(n)], tags


@settings(deadline=None)
@given(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=8), st.sampled_from([0.1, 0.001, 0.00001]))
def test_the_probability_is_that_of_all_paths(p_values: list[float], rate: float) -> None:
    """It equals the share of all paths through the two states, each weighed by how likely it is with what came."""
    enter = rate / (1 + rate)
    turn = {(0, 0): 1 - enter, (0, 1): enter, (1, 0): 0.1, (1, 1): 0.9}
    total = {0: 0.0, 1: 0.0}
    for path in product((0, 1), repeat=len(p_values)):
        weight = 1.0
        for before, state, p_value in zip((0, *path), path, p_values, strict=False):
            weight *= turn[before, state] * (0.2 * p_value**-0.8 if state else 1.0)
        total[path[-1]] += weight
    _, tags = tag_one_session(p_values, rate)
    assert abs(tags.state[-1]) == pytest.approx(total[1] / (total[0] + total[1]), rel=1e-5)


def test_a_stretch_holds_together() -> None:
    """It begins with what is strange enough, one normal record does not tear it, several end it."""
    found, tags = tag_one_session([0.4, 0.9, 1e-5, 0.6, 1e-4, 1e-6, *[0.7] * 6])
    assert "".join(map(str, found)) == "OOBIIIIIOOOO"
    assert [tags.persists(o) for o in range(12)] == [tag == "I" for tag in found]
    confidence = [tags.of(o)["tag_confidence"] for o in range(12)]
    assert confidence[2] >= HIGH
    assert confidence[5] > 0.99
    assert min(confidence[0], confidence[-1]) > 0.9


def test_an_anomaly_by_itself_is_no_stretch_but_several_are() -> None:
    """What just breaks the promise lies outside of any stretch; with another such, one begins."""
    assert tag_one_session([0.5, RATE, 0.5, 0.5])[0] == ["O"] * 4
    assert tag_one_session([0.5, RATE, RATE, RATE])[0] == ["O", "O", "B", "I"]


@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_a_normal_session_seldom_has_one(rate: float) -> None:
    """The share of normal sessions of n records with a bad stretch is at most n x rate."""
    sessions, records = 20_000, 50
    p_values = np.random.default_rng(5).random(sessions * records)
    rows = np.repeat(np.arange(sessions), records)
    walk = walk_of([STEP] * len(rows), rows.tolist(), (np.arange(len(rows)) % records == 0).tolist())
    tags, _ = tag_walk(walk, p_values, np.zeros(sessions, np.float32), rate)
    share = tags.begins.reshape(sessions, records).any(axis=1).mean()
    assert 0 < share <= records * rate


def test_sessions_are_apart_and_begin_anew() -> None:
    """Each has a state of its own, forgotten at its end; what is late, or has no p-value, has no tag and moves none."""
    kinds = [STEP, STEP, LATE, STEP, STEP, END_EVENT, STEP]
    rows = [0, 1, 0, 0, 1, 0, 0]
    p_values = np.array([1e-9, 0.5, 1e-12, np.nan, 0.5, 0.5])
    before = np.zeros(2, np.float32)
    tags, after = tag_walk(walk_of(kinds, rows, [True, True, False, False, False, True]), p_values, before, RATE)
    assert [tags.of(o)["tag"] for o in range(7)] == ["B", "O", None, None, "O", "I", "O"]
    assert tags.state[5] == tags.state[0]
    assert tags.state[6] == tags.state[1] == after[0]
    assert before.tolist() == [0, 0]


def test_without_p_values_there_is_no_tag() -> None:
    """While warming up nothing is tagged, and no end is."""
    tags, after = tag_walk(
        walk_of([STEP, END_EVENT, STEP], [0, 0, 0], [True, True]), None, np.zeros(1, np.float32), RATE
    )
    assert [tags.of(o) for o in range(3)] == [{"tag": None, "tag_confidence": None}] * 3
    assert after[0] == 0
