"""Metrics through Kafka as from a file: wide and named samples, counters, gaps, missing ones; made up and real."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tests.kafka import Stack, WorkerProcess, as_records, by_id
from tests.pipeline.test_worker import CLOCK_KEYS, decisions_of, explained, scored_by_file

Sample = dict[str, Any]
START_MS = 1_790_000_000_000
HOSTS, STEP_MS = 6, 10_000


def samples(seed: int, count: int, start_ms: int = START_MS) -> Iterator[Sample]:
    """Seeded samples of some hosts: a wave, a noise that is missing now and then, and a counter that restarts."""
    rng = random.Random(seed)
    sent = [0] * HOSTS
    for i in range(count):
        for host in range(HOSTS):
            if rng.random() < 0.01:
                continue  # a gap
            sent[host] = 0 if rng.random() < 0.01 else sent[host] + rng.randrange(900, 1_100) * 10
            yield {
                "session": f"h{host}", "ts": start_ms + i * STEP_MS + host,
                "cpu": round(50 + 30 * math.sin(i / 20) + rng.gauss(0, 2), 3),
                "mem": None if rng.random() < 0.05 else round(rng.gauss(40, 1), 3),
                "sent": sent[host],
            }  # fmt: skip


def named(wide: Iterator[Sample]) -> Iterator[Sample]:
    """The same with one number a record."""
    for sample in wide:
        for name in ("cpu", "mem", "sent"):
            yield {"session": sample["session"], "ts": sample["ts"], "metric": name, "value": sample[name]}


def metrics(**stream: Any) -> dict[str, Any]:
    return {"kind": "metrics", "tokens": [], "session": {"by": "session", "gap": "5m", "max_events": 150}} | stream


def train_on(stack: Stack, history: Iterator[Sample]) -> None:
    path = stack.folder / "history.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in history))
    stack.run("train", "-s", "orders", "--input", str(path), "--promote")


def score_both_ways(stack: Stack, live: list[Sample]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decisions and anomalies of a worker that is killed half-way, which equal the file's bit by bit."""
    records = as_records(live)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(4)
        stack.produce(records[: len(records) // 2])
        stack.wait_until_scored()
        worker.kill()
    with WorkerProcess(stack) as worker:
        stack.produce(records[len(records) // 2 :])
        stack.wait_until_scored()
        assert worker.stop() == 0
    decisions = by_id(stack.read_json("decisions"))
    anomalies = by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)
    expected = scored_by_file(stack)
    assert decisions == decisions_of(expected)
    assert explained(anomalies) == explained(expected)
    assert stack.read_json("dead-letters") == []
    return decisions, anomalies


def test_wide_samples(stack: Stack) -> None:
    """A jump that only one host's CPU shows is found and told in its own units; missing samples are no jumps."""
    numbers = ["cpu", "mem", "sent"]
    stack.configure(stream=metrics(numbers=numbers, counters=["sent"], promise={"false_alarm_rate": 0.01}))
    train_on(stack, samples(1, 900))
    live = list(samples(2, 150, START_MS + 10_000_000))
    (broken,) = [s for s in live[500:] if s["session"] == "h3"][:1]
    broken["cpu"] = 300.0
    decisions, anomalies = score_both_ways(stack, live)
    found = [a for a in anomalies.values() if a["observed"].get("cpu") == 300.0]
    assert len(found) == 1
    (expected,) = found[0]["expected"]["cpu"]
    assert -20 < expected["low"] < expected["median"] < expected["high"] < 120
    assert max(found[0]["contributions"], key=found[0]["contributions"].get) == "cpu"
    records = [d for d in decisions.values() if d["type"] == "record"]
    assert sum(d["anomaly"] for d in records) < 0.05 * len(records)
    told = stack.run("tail", "anomalies", "--from-start", "--limit", str(len(anomalies))).stdout
    assert "came 300" in told


def test_named_samples(stack: Stack) -> None:
    """One number a record, named by another field, counters among them."""
    stack.configure(stream=metrics(numbers={"name": "metric", "value": "value"}, counters=["sent"]))
    train_on(stack, named(samples(3, 500)))
    live = list(named(samples(4, 100, START_MS + 10_000_000)))
    _, anomalies = score_both_ways(stack, live)
    assert all(set(a["observed"]) == {"metric", "value"} for a in anomalies.values() if a["type"] == "record")


def test_smd_through_kafka(stack: Stack, shared_data: Path) -> None:
    """A server's 38 numbers, a sample a minute: the worker says what the file says."""
    found = np.load(shared_data / "data" / "smd" / "machine-1-6.npz")
    names = [f"c{i}" for i in range(found["train"].shape[1])]

    def as_samples(part: str, count: int) -> Iterator[Sample]:
        for i, row in enumerate(found[part][:count].tolist()):
            yield {"session": "m", "ts": START_MS + 60_000 * i, **dict(zip(names, row, strict=True))}

    stack.configure(stream=metrics(numbers=names, promise={"false_alarm_rate": 0.001}))
    train_on(stack, as_samples("train", 4_000))
    decisions, _ = score_both_ways(stack, list(as_samples("test", 1_500)))
    assert len([d for d in decisions.values() if d["type"] == "record"]) == 1_500


def test_nab_through_kafka(stack: Stack, shared_data: Path) -> None:
    """A metric of NAB, its first part to learn from: the worker says what the file says."""
    path = sorted((shared_data / "data" / "nab" / "data").rglob("*.csv.gz"))[0]
    with gzip.open(path, "rt") as file:
        rows = [(row["timestamp"], float(row["value"])) for row in csv.DictReader(file)]

    def as_samples(part: list[tuple[str, float]]) -> Iterator[Sample]:
        for moment, value in part:
            at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
            yield {"session": path.stem, "ts": at.isoformat(), "value": value}

    stack.configure(stream=metrics(numbers=["value"], session={"by": "session", "gap": "1h", "max_events": 500}))
    cut = max(len(rows) // 2, 3_300)
    train_on(stack, as_samples(rows[:cut]))
    score_both_ways(stack, list(islice(as_samples(rows[cut:]), 1_000)))


def test_numbers_as_they_come(stack: Stack) -> None:
    """Missing, infinite and written as text: a record is scored all the same; what is no number is a dead letter."""
    stack.configure(stream=metrics(numbers=["cpu"]), models_dir=str(stack.folder / "none yet"))
    texts = ['"NaN"', '"inf"', "null", '""', "1e999", '"12.5"', "1e308", "true", '"12,5"', "NaN"]
    records = [(b"a", b'{"session": "a", "ts": %d, "cpu": %s}' % (START_MS, text.encode())) for text in texts]
    with WorkerProcess(stack) as worker:
        stack.produce(records)
        stack.wait_until_scored()
        page = worker.metrics()
        assert worker.stop() == 0
    assert [letter["reason"] for letter in stack.read_json("dead-letters")] == ["wrong_type", "wrong_type", "not_json"]
    assert len([d for d in stack.read_json("decisions") if d["type"] == "record"]) == 7
    assert 'offbeat_infinite_numbers_total{stream="orders"} 2.0' in page
