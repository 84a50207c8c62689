"""What would have been normal: if it really had come, it would have been, with the p-value that was told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.explanation import explain_record
from detectors.parts import Parts
from features.sessions import STEP
from tests.conftest import make_forecasting_parts, make_linear_parts, make_number_parts, with_gaps
from tests.detectors.test_occlusion import MANY, run
from tests.detectors.test_process import as_events, events_of_a_stream

slowly = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def instead(event: Any, change: dict[str, Any], parts: Parts, at: float) -> Any:
    """The event with the change; of a band the number that lies so far between its ends."""
    field = parts.fields.index(change["field"])
    if field < parts.shape.fields:
        return replace(event, tokens=tuple(change["value"] if f == field else t for f, t in enumerate(event.tokens)))
    column, low, high = field - parts.shape.fields, change["value"]["low"], change["value"]["high"]
    value = np.nextafter(low + at * (high - low), (low + high) / 2) if low < high else low
    return replace(event, numbers=tuple(value if c == column else n for c, n in enumerate(event.numbers)))


@slowly
@given(drawn=events_of_a_stream, kind=st.sampled_from(["tokens", "wide", "linear", "forecast"]), at=st.floats(0, 1))
def test_what_would_have_been_normal_is(parts: Parts, drawn: list[Any], kind: str, at: float) -> None:
    """Of records: the stream with that one field changed is judged again, and the record is no anomaly in it."""
    made = {"linear": make_linear_parts, "forecast": make_forecasting_parts, "tokens": lambda: parts}
    asked = made.get(kind, lambda: make_number_parts("wide"))()
    asked = replace(asked, rate=0.5, explained=0)
    counters = {asked.fields[asked.shape.fields + c] for c in asked.measures.counters}
    events = as_events(drawn, asked)
    for done in run([events], asked):
        for i in np.flatnonzero(done.verdicts.anomaly).tolist():
            operation = int(done.verdicts.walk.of_events[i])
            told = explain_record(done.verdicts, operation, done.rows, asked, done.occluded.of_record(i))
            change = told["would_be_normal"]
            if change is None or change["field"] in counters:  # whose rate it tells, and not what the record holds
                continue
            if isinstance(change["value"], dict) and abs(change["value"]["low"]) > 1e5:  # float32 has no such bands
                continue
            offset = int(done.verdicts.events.offsets[i])
            other = [instead(e, change, asked, at) if e.offset == offset else e for e in events]
            (again,) = run([other], asked)
            j = again.verdicts.events.offsets.tolist().index(offset)
            p = float(again.verdicts.p_value[j])
            assert not again.verdicts.anomaly[j]
            if change["field"] in asked.fields[: asked.shape.fields]:
                assert p == pytest.approx(change["p_value"], rel=0.02)
            else:
                assert p >= change["p_value"] * 0.98


@slowly
@given(drawn=events_of_a_stream)
def test_nothing_is_named_where_nothing_single_would_do(any_parts: Parts, drawn: list[Any]) -> None:
    """Where every p-value is an anomaly there is no such change; where few are, what is named is no reserved word."""
    events = as_events(drawn, any_parts)
    for done in run([events], replace(any_parts, rate=1.0, explained=MANY)):
        for i in np.flatnonzero(done.verdicts.anomaly).tolist():
            assert told_of(done, i, replace(any_parts, rate=1.0)) is None
    few = replace(any_parts, rate=0.2, explained=MANY)
    for done in run([events], few):
        for i in np.flatnonzero(done.verdicts.anomaly).tolist():
            change = told_of(done, i, few)
            if change is not None:
                assert str(change["value"]) not in {"<oov>", "<rare>", "<missing>", "<end>"}
                assert change["p_value"] > 0.2


def told_of(done: Any, i: int, parts: Parts) -> Any:
    operation = int(done.verdicts.walk.of_events[i])
    return explain_record(done.verdicts, operation, done.rows, parts, done.occluded.of_record(i))["would_be_normal"]


@slowly
@given(drawn=events_of_a_stream)
def test_under_an_ensemble_and_of_sessions_a_replay_tells(any_parts: Parts, drawn: list[Any]) -> None:
    """What a replay finds normal has a p-value beyond the promise, and is about a session that is kept whole."""
    parts = replace(any_parts, rate=0.3, explained=MANY)
    events = as_events(drawn, parts)
    for done in run([events], parts):
        for e, occlusion in done.occluded.sessions.items():
            if occlusion.change is not None:
                assert occlusion.change.p_value > 0.3
                operation = done.verdicts.ends.operation[e]
                assert done.verdicts.walk.kind[operation] != STEP
        for occlusion in done.occluded.records.values():
            assert occlusion.change is None or bool(parts.ensemble)


@slowly
@given(drawn=events_of_a_stream.filter(lambda drawn: len(drawn) > 4))
def test_a_session_with_its_strangest_record_changed_is_normal(parts: Parts, drawn: list[Any]) -> None:
    """Of sessions of tokens that the row keeps whole, all of one key: the changed stream is judged again."""
    asked = replace(parts, rate=0.5, explained=MANY)
    one = [(f"s{i // 4}", 0, tokens, i % 4 == 3, numbers) for i, (_, _, tokens, _, numbers) in enumerate(drawn)]
    events = as_events(one, asked)
    (done,) = run([events], asked)
    for e, occlusion in done.occluded.sessions.items():
        ends, change = done.verdicts.ends, occlusion.change
        if change is None or ends.end_surprise[e] >= ends.worst[e]:
            continue
        offset = int(ends.worst_offset[e])
        other = [instead(event, change.told(), asked, 0.5) if event.offset == offset else event for event in events]
        (again,) = run([other], asked)
        j = again.verdicts.ends.last_offset.tolist().index(int(ends.last_offset[e]))
        assert not again.verdicts.ends.anomaly[j]
        assert float(again.verdicts.ends.p_value[j]) == pytest.approx(change.p_value, rel=0.02)


def test_gaps_and_numbers_in_lines_have_bands() -> None:
    """Numbers that a token names, and the time since the event before, are told from where to where."""
    parts = replace(with_gaps(make_number_parts("parameters"), by=0), rate=0.3, explained=0)
    rng, told = np.random.default_rng(0), set()
    drawn = [
        (
            f"s{i % 5}", int(rng.integers(0, 900)), (str(rng.choice(["view", "add", "pay"])), "ok"), False,
            (float(i), float(rng.normal(50, 60)), float("nan")),
        )
        for i in range(400)
    ]  # fmt: skip
    for done in run([as_events(drawn, parts)], parts):
        for i in np.flatnonzero(done.verdicts.anomaly).tolist():
            change = told_of(done, i, parts)
            if change is not None and isinstance(change["value"], dict):
                told.add(change["field"])
                assert change["value"]["low"] < change["value"]["high"]
    assert told >= {"name[1]"}
