"""Verdicts in files make the incidents that workers would have told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from detectors.incident_state import IncidentState
from detectors.incidents import IncidentRules, advance_many
from pipeline.incident_replay import notices, replay

START_MS = 1_700_000_000_000


def verdicts(stream: str, count: int, wrong: range, *, status: str = "ok") -> Iterator[dict[str, Any]]:
    """One record a second, each a session of its own; those of `wrong` are anomalies."""
    for i in range(count):
        yield {
            "type": "record", "id": f"{stream}/t/0/{i}/record", "stream": stream, "session": f"s-{i}",
            "segment": None, "time_ms": START_MS + 1_000 * i, "score": 9.0, "p_value": 1e-6 if i in wrong else 0.5,
            "anomaly": i in wrong, "status": status, "observed": {"status": "failed", "amount": 2.0},
            "contributions": {"status": 6.0, "action": 2.0, "amount": -1.0},
        }  # fmt: skip


def test_notices_carry_what_the_incident_stage_needs() -> None:
    """Each anomaly is one, with the decisions counted before it and shares of what made it strange."""
    (at_ms, notice), *more = notices(verdicts("orders", 10, range(4, 6)), 0.001)
    assert (at_ms, notice.decisions, notice.since_ms, notice.offset) == (START_MS + 4_000, 5, START_MS, 4)
    assert notice.top == (("status", 0.75), ("action", 0.25))
    assert notice.observed == {"status": "failed"}
    assert len(more) == 1
    assert not list(notices(verdicts("orders", 10, range(4, 6), status="late"), 0.001))


def test_streams_that_go_wrong_together_are_one_incident() -> None:
    """Files of two streams are one scope, and what is open at the end is closed."""
    day = 86_400
    reports = replay(
        [notices(verdicts(s, day, range(day - 60, day)), 0.001) for s in ("orders", "spans")], IncidentRules()
    )
    assert [r.change for r in reports if r.change != "updated"] == ["opened", "closed"]
    assert sorted(reports[-1].streams) == ["orders", "spans"]
    assert reports[-1].anomalies == 120


@given(st.integers(1, 40), st.integers(0, 40))
def test_one_stream_is_taken_in_its_own_order(count: int, first: int) -> None:
    """A file alone is what its notices are, one after the other."""
    told = [notice for _, notice in notices(verdicts("a", count, range(first, 99)), 0.01)]
    changes = advance_many(IncidentState(), told, IncidentRules()).changes
    assert replay([notices(verdicts("a", count, range(first, 99)), 0.01)], IncidentRules())[: len(changes)] == changes
