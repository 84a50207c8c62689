"""Raw Hadoop lines through the real broker and worker: mined, matched, sessionised by block; against given event ids.

The same sessions come three times: as raw lines, read by a pattern and our own templates; the same with numbers in the
lines; and as events whose ids came with the data. The model is trained on the first normal sessions and judges the
rest; what templates and numbers cost or bring is the difference in F1. The data is read from beside the repository and
never copied into it.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from rich.console import Console

from benchmarks.loghub import SHARED
from benchmarks.quality.hdfs_worker import compare, examples, offbeat, play_through
from pipeline.broker import LocalBroker

_LEARNED = 0.6  # of the normal sessions, the first ones
_PATTERN = r"(?P<stamp>\d+ \d+) \d+ (?P<level>[A-Z]+) (?P<logger>[^:]+): (?P<message>.*?(?P<block>blk_-?\d+).*)"
_SESSION = {"by": "block", "gap": "1h"}  # a block is written, and hours later deleted: two sessions of one name
RAW = {"kind": "logs", "format": "text", "pattern": _PATTERN, "message": "message"}
_WAYS: dict[str, dict[str, Any]] = {
    "raw": RAW,
    "numbers": RAW | {"parameters": 1},
    "given": {"tokens": ["event"]},
}


def available() -> bool:
    """Whether the labelled data is here."""
    return (SHARED / "data" / "hdfs" / "raw.log.gz").exists()


def run(
    screen: Console, *, blocks: int | None = None, promise: float = 0.01, ways: Sequence[str] = tuple(_WAYS),
    model: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Train and judge in each way; `blocks` limits their number, `model` is laid over each way's."""
    from evalkit.sessions import session_metrics

    labels = {row["block_id"]: int(row["label"]) for row in islice(table("raw_labels.csv.gz"), blocks)}
    normal = [block for block, label in labels.items() if label == 0]  # in order of their first lines
    training = set(normal[: int(_LEARNED * len(normal))])
    found: dict[str, Any] = {"benchmark": "hdfs_raw", "training": len(training), "promise": promise}
    for way in ways:
        with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
            folder = Path(name)
            _configure(folder, broker.address, _with(_WAYS[way], model), promise)
            lines = [line for line in lines_of(way) if line["_key"] in labels]
            for file, chosen in (("train.jsonl", True), ("test.jsonl", False)):
                _write(folder / file, (line for line in lines if (line["_key"] in training) is chosen))
            offbeat(folder, "train", "-s", "hdfs", "--input", "train.jsonl")
            decisions = play_through(folder, broker.address, as_text=way != "given")
            offbeat(folder, "score", "-s", "hdfs", "--input", "back.jsonl", "--output", "verdicts.jsonl")
            verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
        alarmed = dict.fromkeys((v["session"] for v in verdicts if v["type"] == "session"), False)
        alarmed |= {v["session"]: True for v in verdicts if v["type"] == "session" and v["anomaly"]}
        judged = session_metrics(list(alarmed.values()), [labels[block] for block in alarmed])
        differences = compare(decisions, verdicts)
        found |= {f"{way}_{what}": judged[what] for what in ("f1", "precision", "recall", "fpr")}
        found |= {"sessions": len(alarmed), f"{way}_differences": len(differences)}
        found |= {f"{way}_examples": examples(differences, decisions, verdicts)}
        screen.print(f"  {way}: F1 {judged['f1']:.3f}, {len(differences)} differences between worker and file")
    return found


def _with(section: dict[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    return section | {"model": section.get("model", {}) | dict(model)}


def _configure(folder: Path, address: str, section: dict[str, Any], promise: float) -> None:
    stream = {
        "topic": "hdfs.events", "start": "earliest", "session": _SESSION, "promise": {"false_alarm_rate": promise},
    } | section  # fmt: skip
    config = {
        "broker": address, "app": "hdfs", "http": {"port": 0}, "decisions": {"sample": 1.0},
        "streams": {"hdfs": stream},
    }  # fmt: skip
    (folder / "offbeat.yaml").write_text(yaml.safe_dump(config))


def table(name: str) -> Iterable[dict[str, str]]:
    with gzip.open(SHARED / "data" / "hdfs" / name, "rt") as file:
        yield from csv.DictReader(file)


def lines_of(way: str) -> Iterable[dict[str, Any]]:
    with gzip.open(SHARED / "data" / "hdfs" / "raw.log.gz", "rt") as raw:
        for text, row in zip(raw, table("raw_index.csv.gz"), strict=True):
            about = {"_key": row["block_id"], "_timestamp_ms": 1_000 * int(row["ts"])}
            given = {"block": row["block_id"], "event": f"E{row['event_id']}"}
            yield about | (given if way == "given" else {"_value": text.rstrip("\n")})


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("w") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
