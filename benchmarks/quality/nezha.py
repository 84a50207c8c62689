"""A day of a microservice system, scored from files: false alarms before faults, alarms while they last.

Logs, spans and metrics are streams of their own, each trained on what is normal: one minute of logs and spans, eleven
of metrics. Nothing is tuned on the faults. A fault's window is the three minutes from its injection, as the data's
recordings are; the minute before each injection is normal by its labels and was not learned. What a fault does beyond
its window, and what the metrics show between windows, no label tells.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from rich.console import Console

from benchmarks import nezha
from benchmarks.quality.hdfs_worker import offbeat

WINDOW_S, BEFORE_S = 180, 60
Alarm = tuple[int, str]  # time in ms, pod


def run(
    screen: Console, *, streams: Iterable[str] = nezha.STREAMS, until_s: int | None = None, promise: float = 0.01,
    model: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Train and judge each stream; `until_s` leaves out the rest of the day, `model` is laid over each stream's."""
    faults = nezha.faults()
    found: dict[str, Any] = {"benchmark": "nezha", "promise": promise, "faults": len(faults)}
    for stream in streams:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            section = nezha.STREAMS[stream] | {"topic": stream, "promise": {"false_alarm_rate": promise}}
            section |= {"model": section.get("model", {}) | dict(model)}
            (folder / "offbeat.yaml").write_text(yaml.safe_dump({"streams": {stream: section}}))
            _write(folder / "train.jsonl", nezha.history(stream))
            offbeat(folder, "train", "-s", stream, "--input", "train.jsonl")
            rest = (a for a in nezha.arrivals(stream, until_s=until_s) if a.at_ns >= nezha.FIRST_RECORDED_S * 10**9)
            _write(folder / "day.jsonl", rest)
            offbeat(folder, "score", "-s", stream, "--input", "day.jsonl", "--output", "verdicts.jsonl")
            judged = judge(_verdicts(folder / "verdicts.jsonl"), faults)
        found |= {f"{stream}_{what}": value for what, value in judged.items()}
        screen.print(
            f"  {stream}: {judged['records']:,} records; before faults alarms on {judged['false_record_alarms']:.4f} "
            f"of records, {judged['false_session_alarms']:.4f} of sessions; {judged['found']} faults with an alarm"
        )
    return found


def judge(verdicts: Iterable[dict[str, Any]], faults: list[nezha.Fault]) -> dict[str, Any]:
    """Counts and shares of alarms in the faults' windows, in the minutes before them, and elsewhere."""
    seen: Counter[tuple[str, str, bool]] = Counter()  # type, where, whether anomalous
    alarms: list[Alarm] = []
    dead = 0
    for verdict in verdicts:
        if verdict["status"] == "dead_letter":
            dead += 1
            continue
        seen[verdict["type"], _where(verdict["time_ms"], faults), verdict["anomaly"]] += 1
        if verdict["anomaly"]:
            alarms.append((verdict["time_ms"], _pod(verdict)))
    records = sum(n for (kind, _, _), n in seen.items() if kind == "record")
    return {
        "records": records + dead, "dead_letters": dead, "sessions": sum(seen.values()) - records,
        "normal_records": sum(seen["record", "before", a] for a in (False, True)),
        "normal_sessions": sum(seen["session", "before", a] for a in (False, True)),
        "false_record_alarms": _share(seen, "record", "before"),
        "false_session_alarms": _share(seen, "session", "before"),
        "window_record_alarms": _share(seen, "record", "window"),
        "found": sum(_any(alarms, f.begin_s, WINDOW_S) for f in faults),
        "found_on_pod": sum(_any(alarms, f.begin_s, WINDOW_S, f.pod) for f in faults),
        "alarmed_before": sum(_any(alarms, f.begin_s - BEFORE_S, BEFORE_S) for f in faults),
        "alarmed_before_on_pod": sum(_any(alarms, f.begin_s - BEFORE_S, BEFORE_S, f.pod) for f in faults),
        "alarms": len(alarms),
        "alarms_outside": sum(n for (_, where, anomaly), n in seen.items() if anomaly and where != "window"),
    }  # fmt: skip


def _where(time_ms: int, faults: list[nezha.Fault]) -> str:
    """`window` of a fault, the minute `before` one, or `elsewhere`."""
    if any(0 <= time_ms - 1_000 * f.begin_s < 1_000 * WINDOW_S for f in faults):
        return "window"
    return "before" if any(0 < 1_000 * f.begin_s - time_ms <= 1_000 * BEFORE_S for f in faults) else "elsewhere"


def _pod(verdict: dict[str, Any]) -> str:
    """Where it happened: a field of logs and spans; of samples the session."""
    observed = verdict.get("observed") or {}
    return str(observed.get("pod") or observed.get("PodName") or verdict["session"])


def _share(seen: Counter[tuple[str, str, bool]], kind: str, where: str) -> float:
    """Of verdicts of a kind, how many are anomalies."""
    return seen[kind, where, True] / max(1, seen[kind, where, True] + seen[kind, where, False])


def _any(alarms: list[Alarm], begin_s: int, seconds: int, pod: str | None = None) -> bool:
    """Whether there is one in these seconds, of the pod if one is given."""
    return any(0 <= at - 1_000 * begin_s < 1_000 * seconds and pod in {None, of} for at, of in alarms)


def _write(path: Path, arrivals: Iterable[nezha.Arrival]) -> None:
    with path.open("w") as file:
        for arrival in arrivals:
            file.write(json.dumps(arrival.row) + "\n")


def _verdicts(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)
