"""Every detector that follows a stream holds the same small contract, whatever the stream is like."""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detectors
from detectors.drift_watch import DriftState
from detectors.input_watch import MAX_FIELDS
from detectors.intervals import IntervalState
from detectors.kept import READERS
from detectors.score_watch import ScoreState
from tests.contracts.streams import CASES, DAY_MS, Case, Stream, stream

OF_DRIFT = {IntervalState, ScoreState}  # parts of its state
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def bound_of(state: type) -> int:
    """Bytes that its docstring says a state takes at most."""
    stated = re.search(r"[Ll]ess than ([\d,]+) (bytes|KB|MB)", state.__doc__ or "")
    assert stated, f"{state.__name__} does not state its memory"
    return int(stated[1].replace(",", "")) * {"bytes": 1, "KB": 1_000, "MB": 1_000_000}[stated[2]]


def half_strange(n: int) -> Stream:
    """Normal, then strange for good."""
    return stream(n)._replace(is_strange=np.arange(n) >= n // 2)


def test_every_detector_has_a_case() -> None:
    """What is kept in a partition, and whatever else packs itself into bytes, is held to the contract."""
    assert set(READERS) <= set(CASES)
    packing = set()
    for module in pkgutil.iter_modules(detectors.__path__):
        classes = inspect.getmembers(import_module(f"detectors.{module.name}"), inspect.isclass)
        packing |= {c for _, c in classes if hasattr(c, "pack") and hasattr(c, "unpack")}
    assert packing == {case.state for case in CASES.values() if hasattr(case.state, "unpack")} | OF_DRIFT


def test_drift_of_many_fields_is_bounded() -> None:
    """Of the 128 that are watched at most, however full their histograms are."""
    rng, full = np.random.default_rng(0), IntervalState.empty(MAX_FIELDS, 0)
    counts = rng.integers(0, 2**40, full.tally.counts.shape)
    levels = rng.random((8, *full.levels.shape[1:]), np.float32)
    inputs = replace(
        full, tally=replace(full.tally, counts=counts), levels=levels, began_ms=np.arange(8), sizes=np.arange(8),
        since_ms=rng.integers(0, 2**40, full.since_ms.shape), records=rng.integers(0, 2**40, full.records.shape),
    )  # fmt: skip
    assert len(DriftState(inputs, ScoreState.empty(0)).pack()) < bound_of(DriftState)


@each
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.floats(0, 1), max_size=8))
def test_any_slicing_and_restoring_is_the_same(case: Case, cuts: list[float]) -> None:
    """Cut anywhere, saved and read back between: the same alarms, the same state."""
    n = case.records
    whole, state = case.run(half_strange(n))
    found, after = case.run(half_strange(n), tuple(int(cut * n) for cut in cuts), saved=True)
    np.testing.assert_array_equal(found, whole)
    assert case.save(after) == case.save(state)


@each
def test_input_and_state_are_left_untouched(case: Case) -> None:
    """A checkpoint may keep the state before while scoring goes on with the one after."""
    given_stream, n = half_strange(case.records), case.records
    before = given_stream.copy()
    _, state = case.run(given_stream.part(0, n // 2))
    saved = case.save(state)
    case.update(state, given_stream.part(n // 2, n))
    assert case.save(state) == saved
    for column, untouched in zip(given_stream, before, strict=True):
        np.testing.assert_array_equal(column, untouched)


@each
def test_what_becomes_strange_is_told(case: Case) -> None:
    """Nothing, or as much as was promised, before it begins, and more after: no detector is deaf."""
    n = case.records
    found, _ = case.run(half_strange(n))
    before, after = found[: n // 2].mean(), found[n // 2 :].mean()
    assert before <= case.promised < after


@each
def test_a_stream_that_is_never_strange_is_quiet(case: Case) -> None:
    """No alarm in two days, or no more than were promised."""
    assert case.run(stream(case.records, seed=3))[0].mean() <= case.promised


@each
def test_a_stream_that_is_strange_from_its_first_record(case: Case) -> None:
    """What each says is known: always, until it is usual, once, or, without another past to compare with, nothing."""
    n = case.records
    found, _ = case.run(stream(n)._replace(is_strange=np.ones(n, np.bool_)))
    if case.says == "always":
        assert found.all()
    elif case.says == "at first":
        assert found[:50].all()
        assert not found[n // 10 :].any()
    elif case.says == "by bucket":
        assert 100 < found.sum() < n / 10
    elif case.says == "once":
        assert 1 <= found.sum() <= 4  # one for each kind of drift
    else:
        assert not found.any()


@each
def test_constant_values(case: Case) -> None:
    """Records that are all alike, at one moment: nothing divides by 0, and any slicing is the same."""
    n = min(5_000, case.records)
    alike = Stream(*(np.full_like(column[:n], column[0]) for column in stream(n)))
    alike = alike._replace(offsets=np.arange(n))
    found, state = case.run(alike)
    again, after = case.run(alike, (1, 300, n - 9), saved=True)
    np.testing.assert_array_equal(found, again)
    assert case.save(after) == case.save(state)
    assert len(case.save(state)) < bound_of(case.state)


@each
def test_a_clock_set_back(case: Case) -> None:
    """By a day in mid-stream: the same for any slicing, and of detectors that look at no times no word changes."""
    n = case.records
    usual = half_strange(n)
    back = usual._replace(time_ms=usual.time_ms - np.where(np.arange(n) < n // 3, 0, DAY_MS))
    found, state = case.run(back)
    again, after = case.run(back, (n // 3 - 1, n // 3 + 1), saved=True)
    np.testing.assert_array_equal(found, again)
    assert case.save(after) == case.save(state)
    if case.looks_at_times:
        assert found.mean() < 0.01
    else:
        np.testing.assert_array_equal(found, case.run(usual)[0])


@each
@pytest.mark.parametrize("strange", [False, True], ids=["normal", "strange"])
def test_a_flood_in_one_key(case: Case, strange: bool) -> None:
    """A million records in a minute (fewer where that takes long) leave a state as small as it says it is."""
    many = stream(case.flood, days=1 / 1_440, sessions=1)._replace(is_strange=np.full(case.flood, strange))
    found, state = case.run(many, (case.flood // 2,))
    assert len(case.save(state)) < bound_of(case.state)
    if case.says != "always":
        assert found.sum() < 200
