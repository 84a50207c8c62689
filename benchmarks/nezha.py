"""TrainTicket's day of logs, spans and metrics with injected faults; read from beside the repository, never copied.

Rows are what the files hold, as text. `arrivals` gives them in the order in which they would reach Kafka: a log line
when it was written, a span when it ended, a sample when it was taken.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.loghub import SHARED

Row = dict[str, str]
_DAY = "2023-01-30"
FIRST_RECORDED_S = 1_675_079_453  # what lies before is normal

# As a user would write them; without seasons, for there is one day.
STREAMS: dict[str, dict[str, Any]] = {
    "logs": {
        "kind": "logs", "session": {"by": "trace_id", "gap": "30s"}, "time": "time_ns",
        "message": "message", "tokens": ["pod"], "season": [],
    },
    "traces": {  # a span is sent when it ends, and read in the order of beginnings
        "session": {"by": "TraceID", "gap": "30s"}, "time": "StartTimeUnixNano",
        "tokens": ["PodName", "OperationName"], "numbers": ["Duration"], "season": [],
        "late": {"reorder": "10s", "reorder_events": 256},
    },
    "metrics": {
        "kind": "metrics", "session": {"by": "entity", "gap": "5m"}, "time": "timestamp",
        "numbers": {"name": "metric", "value": "value"}, "season": [],
    },
}  # fmt: skip


class Arrival(NamedTuple):
    """A record, when it would reach Kafka, and whether its time is known to be garbage."""

    at_ns: int
    stream: str
    row: Row
    dirt: bool = False

    @property
    def session(self) -> str:
        """Its session's name."""
        return self.row[STREAMS[self.stream]["session"]["by"]]


class Fault(NamedTuple):
    """Something broken on purpose."""

    begin_s: int
    pod: str
    kind: str


def available(shared: Path = SHARED) -> bool:
    """Whether the labelled data is here."""
    return (shared / "data" / "nezha").is_dir()


def history(stream: str) -> list[Arrival]:
    """What is normal: the minute recorded apart, or of the metrics what lies before the first fault's recording."""
    if stream == "metrics":
        return arrivals(stream, until_s=FIRST_RECORDED_S)
    return arrivals(stream, "normal")


def arrivals(stream: str, part: str = "faulty", until_s: int | None = None) -> list[Arrival]:
    """Records of a stream in the order of their arrival; all, or those of times before `until_s` and the dirt."""
    until_ns = 2**63 if until_s is None else until_s * 10**9
    found = {"logs": _lines, "traces": _spans, "metrics": _samples}[stream](part, until_ns)
    return sorted(found, key=lambda arrival: arrival.at_ns)


def faults(shared: Path = SHARED) -> list[Fault]:
    """The day's, in order."""
    entries = json.loads((shared / "data" / "nezha" / f"{_DAY}_faults.json").read_text())
    return sorted(Fault(int(e["inject_timestamp"]), e["inject_pod"], e["inject_type"]) for e in entries)


# Each reads up to a time and no further, for the files are in the order of their times, garbage first.
def _lines(part: str, until_ns: int) -> Iterator[Arrival]:
    for row in _rows(f"{part}_{_DAY}_logs"):
        if (at_ns := int(row["time_ns"])) >= until_ns:
            return
        yield Arrival(at_ns if at_ns > 0 else _written_ns(row["message"]), "logs", row, dirt=at_ns <= 0)


def _written_ns(message: str) -> int:
    """When a line says that it was written, as in `20:59:15.107`, eight hours ahead of UTC."""
    return round(datetime.fromisoformat(f"{_DAY}T{message[:12]}+08:00").timestamp() * 1_000) * 10**6


def _spans(part: str, until_ns: int) -> Iterator[Arrival]:
    for row in _rows(f"{part}_{_DAY}_traces"):
        if int(row["StartTimeUnixNano"]) >= until_ns:
            return
        yield Arrival(int(row["EndTimeUnixNano"]), "traces", row)


def _samples(_: str, until_ns: int) -> Iterator[Arrival]:
    for row in _rows(f"metrics_{_DAY}"):
        if (at_ns := int(row["timestamp"]) * 10**9) >= until_ns:
            return
        yield Arrival(at_ns, "metrics", row)


def _rows(name: str, shared: Path = SHARED) -> Iterator[Row]:
    with gzip.open(shared / "data" / "nezha" / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
