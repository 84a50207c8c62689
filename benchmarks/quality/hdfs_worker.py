"""Hadoop block sessions through the real broker and worker, against `offbeat score` and against their labels.

The sessions and their times are those of `benchmarks/quality/hdfs.py`, which judges without a broker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from rich.console import Console

from benchmarks.kafka import committed_offsets, read_topic
from benchmarks.quality import hdfs
from pipeline.broker import LocalBroker

_COMMAND = [sys.executable, "-P", "-m", "pipeline.cli"]
_COMPARED = ("type", "session", "time_ms", "first_ms", "events", "ended", "score", "p_value", "anomaly", "status")


def run(
    screen: Console, *, learn: int | None = None, play: int | None = None, promise: float = 0.001,
    model: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Train, play, compare and judge; `learn` and `play` limit the numbers of sessions, `model` is laid over ours."""
    from evalkit.data import hdfs_test_weights
    from evalkit.sessions import session_metrics

    training, testing = hdfs.read("train", learn), hdfs.read("test", play)
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        folder = Path(name)
        _configure(folder, broker.address, promise, model)
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
        "benchmark": "hdfs_worker", "sessions": len(testing), "decisions": len(decisions),
        "differences": len(differences), "examples": differences[:3],
        "f1": judged["f1"], "precision": judged["precision"], "recall": judged["recall"],
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


def examples(
    differing: Sequence[str], decisions: Iterable[dict[str, Any]], verdicts: Iterable[dict[str, Any]], most: int = 3
) -> list[dict[str, Any]]:
    """The first that differ, as worker and file have them; None where one of them has none."""
    live, filed = ({d["id"]: {key: d.get(key) for key in _COMPARED} for d in of} for of in (decisions, verdicts))
    return [{"id": i, "worker": live.get(i), "file": filed.get(i)} for i in differing[:most]]


def _configure(folder: Path, address: str, promise: float, model: Mapping[str, Any]) -> None:
    stream = hdfs.SECTION | {"promise": {"false_alarm_rate": promise}, "model": hdfs.SECTION["model"] | dict(model)}
    config = {
        "broker": address,
        "app": "hdfs",
        "http": {"port": 0},
        "decisions": {"sample": 1.0},
        "streams": {"hdfs": stream},
    }
    (folder / "offbeat.yaml").write_text(yaml.safe_dump(config))


def _write(path: Path, sessions: list[dict[str, Any]], seed: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in hdfs.events_of(sessions, seed))


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
        worker.wait(300)
    return [json.loads(_text(m.value())) for m in read_topic(address, "offbeat.decisions")]


def _text(value: bytes | str | None) -> str:
    assert isinstance(value, bytes), "these records have keys and values"
    return value.decode()
