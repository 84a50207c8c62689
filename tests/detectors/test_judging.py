"""Measures against labels equal slow and obvious versions, and those of the evaluation kit beside the data."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.judging import count, delays, interval, overlapping, precision_recall

# Few values, so that many are equal; nan is no score.
SCORES = st.sampled_from([-2.0, 0.0, 0.5, 0.5000001, 1.0, 7.0, math.nan])
JUDGED = st.lists(st.tuples(SCORES, st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=40)
SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=12)


def naive_area(judged: Sequence[tuple[float, bool, float]]) -> float | None:
    """Each distinct score as a threshold, each verdict looked at anew."""
    judged = [(-math.inf if math.isnan(s) else s, y, w) for s, y, w in judged]
    positive = sum(w for _, y, w in judged if y)
    if positive == 0:
        return None
    area = before = 0.0
    for threshold in sorted({s for s, _, _ in judged}, reverse=True):
        reached = [(y, w) for s, y, w in judged if s >= threshold]
        hits, weight = sum(w for y, w in reached if y), sum(w for _, w in reached)
        if weight > 0:
            area += (hits / positive - before) * hits / weight
            before = hits / positive
    return area


def spans(found: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Begins and ends of (begin, length)."""
    return [a for a, _ in found], [a + n for a, n in found]


@given(JUDGED)
def test_the_area_equals_the_naive_one(judged: list[tuple[float, bool, float]]) -> None:
    """The area under the curve is that of every threshold tried in turn: with ties, weights and missing scores."""
    scores, labels, weights = zip(*judged, strict=True)
    curve, expected = precision_recall(scores, labels, weights), naive_area(judged)
    assert (curve is None) == (expected is None)
    if curve is not None and expected is not None:
        assert curve.area == pytest.approx(expected)
        assert curve.recall[-1] == pytest.approx(1)
        assert np.all(np.diff(curve.threshold) < 0)


@given(JUDGED, st.permutations(range(40)))
def test_order_does_not_matter(judged: list[tuple[float, bool, float]], order: list[int]) -> None:
    """The same verdicts in another order, equal scores included, have the same curve."""
    moved = [judged[i] for i in order if i < len(judged)]
    (s, y, w), (s2, y2, w2) = zip(*judged, strict=True), zip(*moved, strict=True)
    one, other = precision_recall(s, y, w), precision_recall(s2, y2, w2)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.precision == pytest.approx(other.precision)
        assert one.recall == pytest.approx(other.recall)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.5, 1.0, 20.0])), max_size=30))
def test_counts_equal_the_naive_ones(verdicts: list[tuple[bool, bool, float]]) -> None:
    """Each measure follows from its definition, and is None where there is nothing to measure."""
    alarmed, labels, weights = ([v[k] for v in verdicts] for k in range(3))
    found = count(alarmed, labels, weights)
    right = sum(w for a, y, w in verdicts if a and y)
    alarms, wrong = sum(w for a, _, w in verdicts if a), sum(w for _, y, w in verdicts if y)
    false, normal = alarms - right, sum(w for _, y, w in verdicts if not y)
    assert found.precision == (pytest.approx(right / alarms) if alarms else None)
    assert found.recall == (pytest.approx(right / wrong) if wrong else None)
    assert found.false_alarm_rate == (pytest.approx(false / normal) if normal else None)
    if found.precision and found.recall:
        assert found.f1 == pytest.approx(2 / (1 / found.precision + 1 / found.recall))
    else:
        assert found.f1 == (0.0 if wrong else None)


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_is_where_the_rate_could_lie(hits: int, more: int) -> None:
    """At either bound the rate seen lies 1.96 standard errors away, which is what Wilson's interval is."""
    tries = hits + more
    low, high = interval(hits, tries)
    assert 0 <= low <= hits / tries <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            error = math.sqrt(bound * (1 - bound) / tries)
            assert abs(hits / tries - bound) / error == pytest.approx(1.96, abs=1e-3)
    assert interval(more, tries) == pytest.approx((1 - high, 1 - low))


def test_the_interval_holds_its_level() -> None:
    """Of seeded samples of rare alarms nine in ten or more have the true rate in their interval."""
    rng = np.random.default_rng(0)
    for rate in (0.001, 0.01, 0.3):
        drawn = rng.binomial(4_000, rate, 2_000)
        held = [low <= rate <= high for low, high in (interval(int(k), 4_000) for k in drawn)]
        assert 0.92 < np.mean(held) < 0.99


@given(SPANS, SPANS)
def test_overlaps_equal_the_naive_ones(some: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> None:
    """A span overlaps if any range shares a moment with it, ends included, however ranges overlap each other."""
    (first, last), (begin, end) = spans(some), spans(ranges)
    naive = [any(f <= e and t >= b for b, e in zip(begin, end)) for f, t in zip(first, last)]  # noqa: B905
    assert overlapping(first, last, begin, end).tolist() == naive


@given(SPANS, SPANS)
def test_delays_equal_the_naive_ones(alarms: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> None:
    """A range is found when the first alarm that shares a moment with it is over."""
    (first, last), (begin, end) = spans(alarms), spans(ranges)
    for b, e, found in zip(begin, end, delays(begin, end, first, last).tolist(), strict=True):
        ends = sorted(t for f, t in zip(first, last, strict=True) if set(range(f, t + 1)) & set(range(b, e + 1)))
        assert (found == ends[0] - b) if ends else math.isnan(found)


def test_measures_equal_the_evaluation_kits(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted counts and the area are those of the kit that judges the benchmarks."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(shared_data)])
    from evalkit.sessions import session_metrics
    from evalkit.tsad import auc_pr

    rng = np.random.default_rng(3)
    for _ in range(20):
        labels = rng.random(200) < 0.2
        labels[0] = True
        scores, weights = np.round(rng.random(200) + 0.3 * labels, 1), np.where(labels, 1.0, 130.0)
        curve = precision_recall(scores, labels)
        assert curve is not None
        assert curve.area == pytest.approx(auc_pr(scores, labels))
        found, theirs = count(scores > 0.9, labels, weights), session_metrics(scores > 0.9, labels, weights)
        assert (found.precision, found.recall, found.f1, found.false_alarm_rate) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1"], theirs["fpr"])
        )
