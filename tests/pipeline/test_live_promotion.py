"""A worker takes another bundle while records flow: each partition from one record on, and the same after a kill -9."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detectors.parts import Learned
from detectors.rows import PartitionState
from models.bundle import promote, serving_digest
from pipeline.outputs import Emitter, Place
from pipeline.registry import Registry
from pipeline.score import Line
from pipeline.serving import load_serving, make_live_decoder, make_parts
from pipeline.settings import load_settings
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.kafka import (
    PATIENCE_S,
    Stack,
    WorkerProcess,
    as_records,
    by_id,
    shop_events,
    wait_until,
    write_untrained_bundle,
)

COMPARED = ("type", "id", "stream", "session", "time_ms", "score", "p_value", "anomaly", "status")
PIECE = 97  # records scored at once; no verdict may depend on it


def announce(stack: Stack, digest: str) -> None:
    """As `offbeat models promote` tells running workers."""
    message = {
        "type": "promote", "stream": stack.stream, "digest": digest, "previous": None, "issued_ms": 1,
        "by": "test", "reason": None,
    }  # fmt: skip
    stack.produce([(stack.stream.encode(), json.dumps(message).encode())], f"{stack.name}.models")


def two_bundles(stack: Stack) -> tuple[str, str]:
    """The one that serves, and another with other weights and calibration that does not."""
    serving = stack.folder / "bundles" / "orders"
    first = str(serving_digest(serving))
    second = write_untrained_bundle(stack, seed=7)
    promote(serving, first)
    return first, second


def switches(logs: list[WorkerProcess]) -> dict[int, list[tuple[int, str]]]:
    """By partition, from which offsets on which bundle was in force, as the workers said."""
    found: dict[int, list[tuple[int, str]]] = {}
    for worker in logs:
        for line in worker.log():
            if line["event"] == "bundle in force":
                found.setdefault(line["partition"], []).append((line["next_offset"], line["bundle"]))
    return found


def expected(stack: Stack, first: str, found: dict[int, list[tuple[int, str]]]) -> dict[str, dict[str, Any]]:
    """Decisions of one uninterrupted run that takes each bundle where the worker did."""
    settings, folder = load_settings(stack.config_path, {}), stack.folder / "bundles" / "orders"
    known = {path.name[:12]: load_serving(settings, "orders", path) for path in folder.iterdir() if path.is_dir()}
    decisions: dict[str, dict[str, Any]] = {}
    by_partition: dict[int, list[Line]] = {}
    for message in stack.read(stack.source):
        place = Place(stack.source, int(message.partition() or 0))
        at, key, value = int(message.offset() or 0), message.key(), message.value()
        line = Line(at, place, at, message.timestamp()[1], key, value)
        by_partition.setdefault(place.partition, []).append(line)
    for p, lines in by_partition.items():
        turns = [(0, first[:12]), *found.get(p, [])]
        ends = [offset for offset, _ in turns[1:]] + [len(lines)]
        parts = make_parts(settings, "orders", None)
        store, state = RowStore(parts.shape, parts.rules), PartitionState(0)
        for (low, name), high in zip(turns, ends, strict=True):
            learned: Learned | None = known[name]
            parts, decoder = make_parts(settings, "orders", learned), make_live_decoder(settings, "orders", learned)
            emitter = Emitter(parts, replace(lines[0].place), 1.0)
            for begin in range(low, high, PIECE):
                events = decoder.decode(lines[begin : min(begin + PIECE, high)], check_key=True)
                done = process_slice(store, events, state, parts)
                assert done is not None
                state = done.state
                for _, decision in emitter.decisions(done):
                    decisions[decision["id"]] = decision
    return decisions


def compared(decisions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {i: {k: v[k] for k in COMPARED} for i, v in decisions.items()}


def assert_as_expected(stack: Stack, first: str, found: dict[int, list[tuple[int, str]]]) -> None:
    """Every decision came, each with one content, and it is the uninterrupted run's, bit by bit."""
    told = by_id(stack.read_json("decisions"))
    assert compared(told) == compared(expected(stack, first, found))


def digest_metric(worker: WorkerProcess) -> list[str]:
    return re.findall(r'offbeat_bundle_info\{digest="([0-9a-f]+|none)"', worker.metrics())


def test_a_promotion_takes_effect_while_records_flow(stack: Stack) -> None:
    """Sessions go on under the new bundle; no verdict differs from those of a run that took it at that record."""
    first, second = two_bundles(stack)
    records = as_records(shop_events(31, 1_500))
    half = len(records) // 2
    with WorkerProcess(stack) as worker:
        stack.produce(records[:half])
        wait_until(lambda: min(stack.committed().values(), default=0) > 0, "records to be scored")
        announce(stack, second)
        stack.produce(records[half:])
        wait_until(lambda: len(switches([worker])) == stack.partitions, "all partitions to take the bundle")
        stack.wait_until_scored()
        assert digest_metric(worker) == [second]
        assert worker.stop() == 0
    found = switches([worker])
    assert all(at[0][0] > 0 for at in found.values()), "it was promoted in mid-stream"
    assert_as_expected(stack, first, found)


def test_a_restarted_worker_goes_on_with_what_is_in_force(stack: Stack) -> None:
    """The topic decides, where the `serving` file is no later."""
    _, second = two_bundles(stack)
    stack.run("topics", "--create")
    announce(stack, second)
    records = as_records(shop_events(32, 300))
    stack.score(records)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        assert digest_metric(worker) == [second]
        assert worker.stop() == 0
    assert switches([worker]) == {}, "it is in force since the first record"
    assert_as_expected(stack, second, {})


def test_a_promotion_that_was_never_told(stack: Stack) -> None:
    """It was promoted after the topic's last message, while no broker answered: a worker that starts goes by it."""
    first, second = two_bundles(stack)
    stack.run("topics", "--create")
    announce(stack, second)
    registry = Registry(load_settings(stack.config_path, {}), "orders")
    for digest in (second, first):
        registry.promote(digest, None)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        assert digest_metric(worker) == [first]
        assert [line["told"] for line in worker.log() if line["event"].startswith("other workers")] == [second[:12]]
        assert worker.stop() == 0


@pytest.mark.parametrize("point", ["checkpoint/2", "checkpoint/4"])
def test_a_kill_around_a_promotion_changes_nothing(stack: Stack, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies after records were judged and told, and before a promotion: they are judged as the first time."""
    first, second = two_bundles(stack)
    records = as_records(shop_events(33, 2_500))
    stack.produce(records)
    monkeypatch.setenv("FAIL_POINT", f"{point}:5")
    with WorkerProcess(stack) as dying:
        assert dying.process.wait(PATIENCE_S) == -9
    monkeypatch.delenv("FAIL_POINT")
    announce(stack, second)
    with WorkerProcess(stack) as hurried:  # it closes in order, most often before it has judged again what had been
        hurried.wait_ready(stack.partitions)
        assert hurried.stop() == 0
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        workers = [hurried, worker]
        wait_until(lambda: len(switches(workers)) == stack.partitions, "all partitions to take the bundle")
        stack.produce(as_records(shop_events(34, 300, start_ms=1_700_100_000_000)))
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert_as_expected(stack, first, switches([dying, hurried, worker]))


def test_a_promoted_bundle_that_is_not_there(stack: Stack) -> None:
    """The worker says so, goes on with the bundle in force, and takes the other once it is there."""
    first, second = two_bundles(stack)
    folder = stack.folder / "bundles" / "orders"
    (folder / second).rename(folder / ".later")
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        announce(stack, second)
        wait_until(lambda: [x for x in worker.log() if x["event"] == "promoted bundle cannot be loaded"], "the error")
        stack.produce(as_records(shop_events(35, 100)))
        stack.wait_until_scored()
        (folder / ".later").rename(folder / second)
        wait_until(lambda: len(switches([worker])) == stack.partitions, "all partitions to take the bundle")
        assert worker.stop() == 0
    assert_as_expected(stack, first, {})


def test_a_bundle_in_force_that_is_gone(stack: Stack) -> None:
    """Sessions go on under the bundle that serves; the log says which is missing."""
    first, second = two_bundles(stack)
    stack.score(as_records(shop_events(36, 100)))
    folder: Path = stack.folder / "bundles" / "orders"
    (folder / first).rename(folder / ".gone")
    promote(folder, second)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        errors = [x for x in worker.log() if x["event"].startswith("bundle in force is gone")]
        assert {e["instead"] for e in errors} == {second[:12]}
        assert worker.stop() == 0
