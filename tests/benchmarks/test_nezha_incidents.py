"""Incidents count for the fault that they open after, and causes by their service."""

from __future__ import annotations

from typing import Any

from benchmarks.nezha import Fault
from benchmarks.quality.nezha_incidents import judge
from detectors.incident_report import Cause, Report

FAULTS = [Fault(1_000, "ts-food-service-f57-6sb", "network_delay"), Fault(5_000, "ts-route-service-b6c-dz9", "cpu")]


def report(name: str, at_s: int, change: str = "opened", segments: tuple[str, ...] = ()) -> Report:
    """A change of an incident, by time and causes."""
    causes = [Cause("logs", segment, None, 0, 1.0, 1.0) for segment in segments]
    nothing: dict[str, Any] = {
        "scope": "", "severity": "low", "start_ms": 0, "end_ms": None, "merged_into": None, "anomalies": 1,
        "suppressed": 0, "withheld": 0, "streams": [], "segments": [], "sessions": 1, "session_names": [],
        "contributors": [], "examples": [], "summary": "",
    }  # fmt: skip
    return Report(id=name, change=change, revision=1, last_ms=1_000 * at_s, causes=causes, **nothing)


def test_incidents_count_where_they_open() -> None:
    """After the injection they are found, in the minute before they are false; another pod of the service is right."""
    food, other = "ts-food-service-f57-other", "ts-user-service-1-2"
    reports = [
        report("a", 990), report("b", 1_050, segments=(other, other, other, food)),
        report("b", 1_100, "updated", (other, food)), report("b", 1_130, "updated", (other,)),
        report("c", 3_000), report("d", 5_121, segments=("ts-route-service-b6c-dz9",)),
    ]  # fmt: skip
    assert judge(reports, FAULTS) == {
        "incidents": 4, "found": 1, "right_service": 1, "windows_with_incident_before": 1, "outside": 2, "messages": 6,
    }  # fmt: skip
