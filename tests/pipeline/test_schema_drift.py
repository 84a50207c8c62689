"""A producer that changes its records in mid-stream is told of, by message, metric and log, and its records go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from pipeline.partition_row import decode_partition_row
from pipeline.score import Scorer, read_lines
from pipeline.serving import load_serving
from pipeline.settings import load_settings
from tests.kafka import Stack, WorkerProcess, as_records, by_id, shop_events, wait_until

CLOCKS = ("detected_ms",)


def without(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != name} for event in events]


def train(stack: Stack) -> None:
    history = stack.folder / "history.jsonl"
    history.write_text("".join(json.dumps(event) + "\n" for event in shop_events(31, 600, start_ms=1_600_000_000_000)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")


def drift(stack: Stack) -> dict[str, dict[str, Any]]:
    return by_id(stack.read_json("drift"), ignore=CLOCKS)


def gauges(worker: WorkerProcess) -> set[str]:
    """Series of the gauge that are 1."""
    lines = [line for line in worker.metrics().splitlines() if line.startswith("offbeat_field_drift{")]
    return {line.split("{")[1].split("}")[0] for line in lines if line.endswith(" 1.0")}


def test_a_field_that_vanishes_in_mid_stream(stack: Stack) -> None:
    """Each partition says once that it began and once that it ended, also over a kill -9; all records are scored."""
    train(stack)
    whole = list(shop_events(32, 1_800))
    cut = len(whole) // 3
    usual, odd, again = whole[:cut], without(whole[cut : 2 * cut], "status"), whole[2 * cut :]
    worker = WorkerProcess(stack)
    with worker:
        stack.produce(as_records(usual))
        stack.wait_until_scored()
        assert drift(stack) == {}
        stack.produce(as_records(odd))
        wait_until(lambda: len(drift(stack)) == stack.partitions, "each partition to notice")
        assert len(gauges(worker)) == stack.partitions
        lacking = [line for line in worker.metrics().splitlines() if line.startswith("offbeat_field_missing_total{")]
        assert ['field="status"' in line for line in lacking] == [True]
        worker.kill()
    with WorkerProcess(stack) as later:
        later.wait_ready(stack.partitions)
        stack.wait_until_scored()
        wait_until(lambda: len(gauges(later)) == stack.partitions, "the gauges to be as they were saved")
        stack.produce(as_records(again))
        wait_until(lambda: len(drift(stack)) == 2 * stack.partitions, "each partition to be well again")
        stack.wait_until_scored()
        assert gauges(later) == set()
        assert later.stop() == 0
    told = drift(stack)
    assert {(v["type"], v["field"], v["phase"], v["source"]["partition"]) for v in told.values()} == {
        ("field_missing", "status", phase, p) for phase in ("began", "ended") for p in range(stack.partitions)
    }
    assert all(v["since_ms"] >= odd[0]["ts"] - 60_000 for v in told.values())
    assert stack.read_json("dead-letters") == []
    assert len({d["id"] for d in stack.read_json("decisions") if d["type"] == "record"}) == len(whole)
    assert saved_schemas(stack) == scored_schemas(stack)


def saved_schemas(stack: Stack) -> dict[int, Any]:
    """What the partition rows hold of the fields, by partition."""
    from pipeline.cold_rows import PARTITION, ColdRows, Memory

    found = {}
    for p in range(stack.partitions):
        cold = ColdRows(stack.saved_rows(p), Memory(16 << 20))
        try:
            found[p] = decode_partition_row(cold.get(PARTITION) or b"").schema
        finally:
            cold.close()
    return found


def scored_schemas(stack: Stack) -> dict[int, Any]:
    """What `offbeat score` remembers after the same records."""
    stack.write_back(stack.folder / "records.jsonl")
    settings = load_settings(stack.config_path, {})
    scorer = Scorer(settings, "orders", load_serving(settings, "orders"))
    assert list(scorer.score(list(read_lines(stack.folder / "records.jsonl", stack.source))))
    return {place.partition: partition.state.schema for place, partition in scorer._partitions.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_training_refuses_a_field_that_no_record_has(masked: bool, tmp_path: Path) -> None:
    """The path is named, with the one that looks most like it; of a masked stream no other field is told."""
    stack = Stack("127.0.0.1:1", tmp_path, name="t")
    stack.configure(stream={"tokens": ["action", "stats"], **({"mask": {"action": {"truncate": 4}}} if masked else {})})
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(event) + "\n" for event in shop_events(1, 200)))
    refused = stack.run("train", "-s", "orders", "--input", str(history), check=False)
    assert refused.returncode == 2
    assert "no record of the history has the field stats" in refused.stderr
    assert ("did you mean status?" in refused.stderr) == (not masked)


def test_a_worker_without_a_bundle_says_what_no_record_has(kafka_address: str, tmp_path: Path) -> None:
    """After a thousand records of a partition, once; the worker goes on."""
    stack = Stack(kafka_address, tmp_path, partitions=1)
    stack.configure(stream={"tokens": ["action", "stats"]})
    stack.create_source()
    events = list(shop_events(33, 400))
    assert len(events) > 2_000
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(events))
        stack.wait_until_scored()
        assert worker.stop() == 0
    (told,) = drift(stack).values()
    assert (told["type"], told["field"], told["phase"], told["source"]["offset"]) == (
        "field_missing", "stats", "began", 999,
    )  # fmt: skip
    assert "correct its path" in told["detail"]


def test_series_of_a_partition_that_is_let_go_of_are_dropped() -> None:
    """Whatever fields drifted; other partitions' stay."""
    metrics = Metrics(CollectorRegistry())
    for partition in ("0", "1"):
        for name in ("status", "user.plan"):
            metrics.field_drift.labels("orders", partition, name, "missing").set(1)
    metrics.forget("orders", 0)
    (family,) = (f for f in metrics.registry.collect() if f.name == "offbeat_field_drift")
    assert {sample.labels["partition"] for sample in family.samples} == {"1"}
    assert len(family.samples) == 2
