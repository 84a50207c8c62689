"""Explanations: they add up, name what was likely, and show the session's last events, however the stream was cut."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors.expectations import END, TOP
from detectors.parts import Parts
from detectors.rows import PartitionState
from features.decode import Decoder
from features.events import Events
from pipeline.outputs import Emitter, Place
from pipeline.score import Line
from pipeline.sentences import sentence_of, why_of
from pipeline.slices import process_slice
from pipeline.store import RowStore
from pipeline.wire import Profile
from tests.conftest import with_profiles

PLACE = Place("shop.orders", 0)
DECODER = Decoder("session", "ts", ["action", "status"], {"action": "close"})
Step = tuple[str, str | None, int]


def as_lines(steps: list[Step]) -> list[Line]:
    events = [{"session": s, "action": a, "status": "ok", "ts": 10**12 + ms} for s, a, ms in steps]
    return [Line(i + 1, PLACE, i, 0, None, json.dumps(event).encode()) for i, event in enumerate(events)]


def explain(steps: list[Step], parts: Parts, cuts: list[int] | None = None) -> dict[str, Any]:
    """Every anomaly of the stream by id, with its explanation."""
    store, state, emitter = RowStore(parts.shape, parts.rules), PartitionState(0), Emitter(parts, PLACE, 1.0)
    lines, out = as_lines(steps), {}
    bounds = sorted({0, len(lines), *(c for c in cuts or [] if c < len(lines))})
    for low, high in pairwise(bounds):
        events: Events = DECODER.decode(lines[low:high], check_key=False)
        done = process_slice(store, events, state, parts)
        assert done is not None
        state = done.state
        out.update({d["id"]: d for _, d in emitter.decisions(done) if d["anomaly"]})
    return out


@pytest.fixture
def alarmed(parts: Parts) -> Parts:
    """Parts under which every verdict is an anomaly."""
    return replace(parts, rate=1.0)


STEPS: list[Step] = [
    ("a", "view", 0), ("b", "add", 10), ("a", "teleport", 400), ("a", None, 300), ("b", "close", 500),
    ("a", "ship", 900), ("a", "close", 1_000), ("a", "view", 1_100), ("c", "pay", 9_000),
]  # fmt: skip


def test_a_record_is_explained(alarmed: Parts) -> None:
    """Contributions sum to the score, three tokens are expected per field, the likeliest first; what came is told."""
    found = explain(STEPS, alarmed)
    records = {i: d for i, d in found.items() if d["type"] == "record"}
    assert len(records) == len(STEPS)
    for i, (_, action, _) in enumerate(STEPS):
        d = records[f"orders/shop.orders/0/{i}/record"]
        assert d["observed"] == {"action": action, "status": "ok"}
        assert sum(d["contributions"].values()) == pytest.approx(d["score"], rel=1e-6)
        for field in ("action", "status"):
            probabilities = [e["probability"] for e in d["expected"][field]]
            assert len(probabilities) == TOP
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1 + 1e-5


def test_the_context_is_the_sessions_own_past(alarmed: Parts) -> None:
    """Shown are the session's events before, oldest first, unknown tokens as <oov>; a new session begins with none."""
    found = explain(STEPS, alarmed)

    def context(offset: int, what: str = "record") -> list[str]:
        return [e["action"] for e in found[f"orders/shop.orders/0/{offset}/{what}"]["context"]]

    assert context(0) == []
    assert context(2) == ["view"]
    assert context(5) == ["view", "<oov>", "<missing>"]
    assert context(6, "session") == ["view", "<oov>", "<missing>", "ship", "close"]
    assert context(7) == []
    assert context(7, "session") == ["view"]


def test_a_session_is_explained(alarmed: Parts) -> None:
    """A session's score is the larger of its worst record and its end, and the worst record is named."""
    found = explain(STEPS, alarmed)
    ended = {i: d for i, d in found.items() if d["type"] == "session"}
    assert {d["ended"] for d in ended.values()} == {"event", "gap"}
    for d in ended.values():
        parts_of_score = d["contributions"]
        assert d["score"] == max(parts_of_score["worst_record"], parts_of_score["end"])
        assert found[f"orders/shop.orders/0/{d['worst_offset']}/record"]["score"] == parts_of_score["worst_record"]
        assert d["observed"] == {"end": d["ended"]}


def test_the_end_is_something_to_expect(alarmed: Parts) -> None:
    """Among what the first field expects the session's end can stand; among the others' it cannot."""
    expected = [d["expected"] for d in explain(STEPS, alarmed).values()]
    tokens = {e["token"] for one in expected for e in one["action"]}
    assert tokens <= {"view", "add", "pay", "ship", "close", "<oov>", "<missing>", END}
    assert {e["token"] for one in expected for e in one["status"]} <= {"ok", "failed", "<oov>", "<missing>"}


def test_sentences_say_why(alarmed: Parts) -> None:
    """Each anomaly has a line that names what came or how it ended, and what was expected."""
    for d in explain(STEPS, alarmed).values():
        assert d["session"] in sentence_of("anomalies", d)
        why = why_of(d)
        if d["type"] == "session":
            assert why.startswith(f"session of {d['events']} events, ended by {d['ended']}: ")
        else:
            field = max(d["contributions"], key=d["contributions"].get)
            assert why.startswith(f"{field}: ")
            assert f"expected {d['expected'][field][0]['token']} (" in why
            assert ("as the first event" in why) == (d["context"] == [])


steps_of_a_stream = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(["view", "add", "teleport", "close", None]), st.integers(0, 20_000)
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps_of_a_stream, st.lists(st.integers(0, 40), max_size=6))
def test_slicing_changes_no_explanation(alarmed: Parts, steps: list[Step], cuts: list[int]) -> None:
    """Cut anywhere, the same anomalies have the same explanations."""
    whole, cut = explain(steps, alarmed), explain(steps, alarmed, cuts)
    seen = whole.keys() & cut.keys()
    assert {i: whole[i] for i in seen} == {i: cut[i] for i in seen}
    assert {i for i in whole.keys() ^ cut.keys() if not i.endswith("/session")} == set()


def test_a_session_is_explained_as_a_whole(alarmed: Parts) -> None:
    """What each detector says is told, and what differs from training, in words; the score follows from it."""
    found = [d for d in explain(STEPS, with_profiles(alarmed)).values() if d["type"] == "session"]
    assert found
    for d in found:
        nats = np.array(list(d["profile"]["nats"].values()))
        assert d["score"] == pytest.approx(np.log(np.exp(nats).mean()), rel=1e-5)
        assert all(c["count"] != c["usual"] for c in d["profile"]["differences"])
        assert 0 < d["profile"]["pair"]["probability"] < 1
        Profile.model_validate(d["profile"])
        assert why_of(d).startswith(f"session of {d['events']} events")
    told = {counted["token"] for d in found for counted in d["profile"]["differences"]}
    assert told & {"view", "add", "pay", "ok"}
    assert any(" x " in why_of(d) for d in found)
