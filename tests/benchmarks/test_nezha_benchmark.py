"""Alarms are counted where they belong: in a fault's window, in the minute before it, or elsewhere."""

from __future__ import annotations

from typing import Any

from benchmarks.nezha import Fault
from benchmarks.quality.nezha import judge

FAULTS = [Fault(1_000, "cart-1", "network_delay"), Fault(5_000, "cart-1", "cpu_contention")]


def verdict(at_s: int, *, anomaly: bool = False, kind: str = "record", pod: str = "cart-1") -> dict[str, Any]:
    return {
        "type": kind, "status": "ok", "time_ms": 1_000 * at_s, "anomaly": anomaly, "session": "s",
        "observed": {"pod": pod},
    }  # fmt: skip


def test_alarms_are_counted_where_they_belong() -> None:
    """Each verdict counts once, a window ends before its last moment, and the pod decides what is found on it."""
    verdicts = [
        verdict(940), verdict(999, anomaly=True), verdict(939, anomaly=True),  # the minute before, twice; elsewhere
        verdict(1_000), verdict(1_179, anomaly=True, pod="shop-1"), verdict(1_180, anomaly=True),
        verdict(5_001, anomaly=True), verdict(950, kind="session"),
        {"type": "record", "status": "dead_letter", "time_ms": None, "anomaly": False, "session": None},
    ]  # fmt: skip
    assert judge(verdicts, FAULTS) == {
        "records": 8, "dead_letters": 1, "sessions": 1, "normal_records": 2, "normal_sessions": 1,
        "false_record_alarms": 0.5, "false_session_alarms": 0.0, "window_record_alarms": 2 / 3,
        "found": 2, "found_on_pod": 1, "alarmed_before": 1, "alarmed_before_on_pod": 1,
        "alarms": 5, "alarms_outside": 3,
    }  # fmt: skip
