"""Hadoop block sessions through the real broker and worker, against `offbeat score` and against their labels.

The sessions are read from the labelled data beside the repository (`../shared`, or SHARED in the environment) and
never copied into it. They carry no usable times, so starts are made up by a seed and events lie one second apart.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.kafka import committed_offsets, read_topic
from pipeline.broker import LocalBroker

SHARED = Path(os.environ.get("SHARED", Path(__file__).resolve().parents[3] / "shared"))
_COMMAND = [sys.executable, "-P", "-m", "pipeline.cli"]
_START_MS = 1_700_000_000_000
_SECONDS_PER_SESSION = 3  # about ten sessions are open at once
_COMPARED = ("type", "session", "time_ms", "first_ms", "events", "ended", "score", "p_value", "anomaly", "status")


def available() -> bool:
    """Whether the labelled data is here."""
    return (SHARED / "data" / "hdfs" / "sessions.csv.gz").exists()


def run(
    screen: Console, *, learn: int | None = None, play: int | None = None, promise: float = 0.001
) -> dict[str, Any]:
    """Train, play, compare and judge; `learn` and `play` limit the numbers of sessions."""
    sys.path.insert(0, str(SHARED))
    from evalkit.data import hdfs_sessions, hdfs_test_weights
    from evalkit.sessions import session_metrics

    rows = hdfs_sessions()
    training, testing = (
        _sample([r for r in rows if r["split"] == split], limit) for split, limit in (("train", learn), ("test", play))
    )
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        folder = Path(name)
        _configure(folder, broker.address, promise)
        _write(folder / "train.jsonl", training, 1)
        _write(folder / "test.jsonl", testing, 2)
        screen.print(f"  training on {len(training):,} sessions")
        offbeat(folder, "train", "-s", "hdfs", "--input", "train.jsonl")
        screen.print(f"  playing {len(testing):,} sessions through broker and worker")
        decisions = play_through(folder, broker.address)
        offbeat(folder, "score", "-s", "hdfs", "--input", "back.jsonl", "--output", "verdicts.jsonl")
        verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    differences = compare(decisions, verdicts)
    alarmed = {v["session"]: v["anomaly"] for v in verdicts if v["type"] == "session"}
    labels = [r["label"] for r in testing]
    weights = hdfs_test_weights(labels) if play is None else None
    judged = session_metrics([alarmed[r["block_id"]] for r in testing], labels, weights)
    return {
        "benchmark": "hdfs", "sessions": len(testing), "decisions": len(decisions), "differences": len(differences),
        "examples": differences[:3], "f1": judged["f1"], "precision": judged["precision"], "recall": judged["recall"],
        "false_alarm_rate": judged["fpr"], "promise": promise,
    }  # fmt: skip


def compare(decisions: Iterable[dict[str, Any]], verdicts: Iterable[dict[str, Any]]) -> list[str]:
    """Ids on which worker and file differ in any compared key, bit by bit; sessions only the file ends are left out."""
    live = {d["id"]: d for d in decisions}
    filed = {v["id"]: v for v in verdicts if v.get("ended") != "input"}
    return sorted(
        i
        for i in live.keys() | filed.keys()
        if i not in live or i not in filed or any(live[i].get(k) != filed[i].get(k) for k in _COMPARED)
    )


def _sample(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """All rows, or a seeded sample: the file's order is the log's, so its first rows are not like the others."""
    return rows if limit is None else random.Random(1).sample(rows, limit)


def _configure(folder: Path, address: str, promise: float) -> None:
    stream = {
        "topic": "hdfs.events", "start": "earliest", "time": "ts", "tokens": ["event"],
        "session": {"by": "block", "gap": "60s"}, "promise": {"false_alarm_rate": promise},
    }  # fmt: skip
    config = {
        "broker": address,
        "app": "hdfs",
        "http": {"port": 0},
        "decisions": {"sample": 1.0},
        "streams": {"hdfs": stream},
    }
    (folder / "offbeat.yaml").write_text(yaml.safe_dump(config))


def _write(path: Path, sessions: list[dict[str, Any]], seed: int) -> None:
    rng = random.Random(seed)
    span_ms = 1_000 * _SECONDS_PER_SESSION * len(sessions)
    events = []
    for row in sessions:
        start = _START_MS + rng.randrange(span_ms)
        events += [(start + 1_000 * i, row["block_id"], f"E{e}") for i, e in enumerate(row["events"])]
    events.sort(key=lambda event: event[0])
    with path.open("w") as file:
        for ts, block, event in events:
            file.write(json.dumps({"ts": ts, "block": block, "event": event}) + "\n")


def offbeat(folder: Path, *arguments: str) -> None:
    """Run a command in a folder with a config."""
    subprocess.run([*_COMMAND, *arguments], cwd=folder, check=True, capture_output=True)


def play_through(folder: Path, address: str, *, as_text: bool = False) -> list[dict[str, Any]]:
    """Produce the test records, let a worker score them, and read its decisions back.

    The records as they lie in the topic are written to `back.jsonl`, as `offbeat score` reads them.
    """
    offbeat(folder, "topics", "--create")
    offbeat(folder, "produce", "-s", "hdfs", "test.jsonl")
    records = read_topic(address, "hdfs.events")
    with (folder / "back.jsonl").open("w") as file:
        for m in records:
            about = {"_key": _text(m.key()), "_partition": m.partition(), "_offset": m.offset()}
            about["_timestamp_ms"] = m.timestamp()[1]
            event = {"_value": _text(m.value())} if as_text else json.loads(_text(m.value()))
            file.write(json.dumps(event | about) + "\n")
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen([*_COMMAND, "worker"], cwd=folder, stdout=log, stderr=log)
    try:
        while sum(committed_offsets(address, "hdfs", "hdfs.events", 4).values()) < len(records):
            assert worker.poll() is None, (folder / "worker.log").read_text()
            time.sleep(0.2)
    finally:
        worker.terminate()
        worker.wait(30)
    return [json.loads(_text(m.value())) for m in read_topic(address, "offbeat.decisions")]


def _text(value: bytes | str | None) -> str:
    assert isinstance(value, bytes), "these records have keys and values"
    return value.decode()
