"""A day of a microservice system as incidents: faults found within two minutes, and the right service named.

Logs, spans and metrics are streams of their own with the pod as segment, trained on what is normal, and meet in one
scope. Nothing is tuned on the faults; recordings lie under five minutes apart, so beside the defaults of `incidents`
stand figures with `quiet` as short as `together`, or one incident would last from fault to fault. An incident counts
for a fault if it opens in the two minutes from its injection; one that opens in the minute before is false. Metrics run
throughout, so of them alone all that opens outside the faults' recordings is false, by the hour.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks import nezha
from benchmarks.quality.hdfs_worker import offbeat
from benchmarks.quality.nezha import BEFORE_S, WINDOW_S, _verdicts, _write
from detectors.incident_report import Report
from detectors.incidents import IncidentRules
from pipeline.incident_replay import notices, replay

SEGMENTS = {"logs": "pod", "traces": "PodName", "metrics": "entity"}
SOON_S = 120
RULES = IncidentRules(quiet_ms=120_000)
FIRST = 3  # causes looked at


def run(screen: Console, *, until_s: int | None = None, promise: float = 0.01) -> dict[str, Any]:
    """Train, score and make incidents; `until_s` leaves out the rest of the day."""
    faults = [f for f in nezha.faults() if until_s is None or f.begin_s + SOON_S <= until_s]
    with tempfile.TemporaryDirectory() as name:
        verdicts = {stream: _score(Path(name), stream, until_s, promise, screen) for stream in nezha.STREAMS}
        found: dict[str, Any] = {"benchmark": "nezha-incidents", "promise": promise, "faults": len(faults)}
        for rules, suffix in ((RULES, ""), (IncidentRules(), "_by_default")):
            judged = incidents(verdicts, faults, promise, rules, screen)
            found |= {f"{what}{suffix}": value for what, value in judged.items()}
    return found


def incidents(
    verdicts: Mapping[str, Path], faults: Sequence[nezha.Fault], promise: float, rules: IncidentRules, screen: Console
) -> dict[str, Any]:
    """What the verdicts of all streams, and of the metrics alone, come to."""
    together = replay([notices(_verdicts(path), promise) for path in verdicts.values()], rules)
    alone = replay([notices(_verdicts(verdicts["metrics"]), promise)], rules)
    times = [v["time_ms"] for v in _verdicts(verdicts["metrics"]) if v.get("time_ms")]
    found = judge(together, faults)
    hours = _hours_outside(min(times) // 1000, max(times) // 1000, faults)
    found["metrics_alone_false_an_hour"] = len(_outside(alone, faults)) / hours
    screen.print(
        f"  quiet {rules.quiet_ms // 1000} s: {found['found']} of {len(faults)} faults with an incident within two "
        f"minutes, {found['right_service']} with the right service among its first {FIRST} causes; "
        f"{found['windows_with_incident_before']} windows with one before; metrics alone "
        f"{found['metrics_alone_false_an_hour']:.2f} false ones an hour"
    )
    return found


def _score(folder: Path, stream: str, until_s: int | None, promise: float, screen: Console) -> Path:
    section = nezha.STREAMS[stream] | {
        "topic": stream, "promise": {"false_alarm_rate": promise}, "segment": SEGMENTS[stream],
    }  # fmt: skip
    (folder / "offbeat.yaml").write_text(yaml.safe_dump({"streams": {stream: section}}))
    _write(folder / "train.jsonl", nezha.history(stream))
    offbeat(folder, "train", "-s", stream, "--input", "train.jsonl")
    rest = (a for a in nezha.arrivals(stream, until_s=until_s) if a.at_ns >= nezha.FIRST_RECORDED_S * 10**9)
    _write(folder / "day.jsonl", rest)
    path = folder / f"{stream}.verdicts.jsonl"
    offbeat(folder, "score", "-s", stream, "--input", "day.jsonl", "--output", path.name)
    screen.print(f"  {stream}: scored")
    return path


def judge(reports: Sequence[Report], faults: Sequence[nezha.Fault]) -> dict[str, Any]:
    """How many faults were found, named rightly, and preceded by incidents."""
    opened = [r for r in reports if r.change == "opened"]
    found, named, before = 0, 0, 0
    for fault in faults:
        soon = [r for r in opened if _is_in(r, fault, 0, SOON_S)]
        found += bool(soon)
        ids = {r.id for r in soon}
        latest = {r.id: r for r in reports if r.id in ids and r.last_ms < 1_000 * (fault.begin_s + SOON_S)}
        named += any(_service(c.segment) == _service(fault.pod) for r in latest.values() for c in r.causes[:FIRST])
        before += any(_is_in(r, fault, -BEFORE_S, 0) for r in opened)
    return {
        "incidents": len(opened), "found": found, "right_service": named,
        "windows_with_incident_before": before, "outside": len(_outside(reports, faults)), "messages": len(reports),
    }  # fmt: skip


def _is_in(report: Report, fault: nezha.Fault, begin_s: int, end_s: int) -> bool:
    """Whether an incident opened so long after the injection."""
    return begin_s <= report.last_ms / 1_000 - fault.begin_s < end_s


def _outside(reports: Iterable[Report], faults: Sequence[nezha.Fault]) -> list[Report]:
    """What opened in no fault's recording."""
    opened = (r for r in reports if r.change == "opened")
    return [r for r in opened if not any(_is_in(r, fault, 0, WINDOW_S) for fault in faults)]


def _hours_outside(begin_s: int, end_s: int, faults: Sequence[nezha.Fault]) -> float:
    inside = sum(max(0, min(end_s, f.begin_s + WINDOW_S) - max(begin_s, f.begin_s)) for f in faults)
    return (end_s - begin_s - inside) / 3_600


def _service(pod: str | None) -> str | None:
    """A pod's name without what Kubernetes adds: the hashes of its set and of itself."""
    return None if pod is None else pod.rsplit("-", 2)[0]
