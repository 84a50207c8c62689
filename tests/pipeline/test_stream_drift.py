"""A stream that changes for good is told of by message, metric and log, the same by worker and file, over a kill -9."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectors.drift_events import DriftEvent
from detectors.drift_watch import NAME as DRIFT
from pipeline.cold_rows import ColdRows, Memory
from pipeline.kept_rows import PREFIX, decode_kept
from pipeline.outputs import Place
from pipeline.score import Scorer, read_lines
from pipeline.serving import load_serving
from pipeline.settings import load_settings
from pipeline.stream_drift import detail_of
from tests.kafka import Stack, WorkerProcess, as_records, by_id, wait_until

MINUTE, START = 60_000, 1_700_000_000_000
STREAM = {
    "tokens": ["action", "status"], "numbers": ["ms"], "model": {"hidden": 16, "max_epochs": 4},
    "drift": {"after": "2m"},
    "session": {"by": "session", "gap": "10s", "end_when": {"action": "close"}},
}  # fmt: skip


def visits(seed: int, minutes: int, first_minute: int = 0, *, slow: bool = False) -> Iterator[dict[str, Any]]:
    """Sixty visits a minute of seven steps each, evenly in time; `slow` where each step takes thrice as long."""
    rng = random.Random(seed)
    events = []
    for visit in range(60 * minutes):
        at = START + MINUTE * first_minute + 1_000 * visit
        for step, action in enumerate(("open", "view", "view", "add", "pay", "ship", "close")):
            ms = rng.lognormvariate(4, 0.5) * (3 if slow else 1)
            status = "failed" if rng.random() < 0.1 else "ok"
            events.append({
                "session": f"v-{seed}-{visit}", "action": action, "status": status, "ms": ms, "ts": at + 300 * step,
            })  # fmt: skip
    yield from sorted(events, key=lambda event: event["ts"])


def drift(stack: Stack) -> dict[str, dict[str, Any]]:
    return by_id(stack.read_json("drift"), ignore=("detected_ms",))


def test_a_change_that_lasts_is_told(kafka_address: str, tmp_path: Path) -> None:
    """It began, over a kill -9 in the middle, and ended: once in each partition; the file remembers the same."""
    stack = Stack(kafka_address, tmp_path, partitions=2)
    stack.configure(stream=STREAM)
    stack.create_source()
    history = stack.folder / "history.jsonl"
    history.write_text("".join(json.dumps(event) + "\n" for event in visits(1, 60)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")
    usual, off, again = visits(2, 15, 60), list(visits(3, 50, 75, slow=True)), visits(4, 55, 125)
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(usual))
        stack.wait_until_scored()
        assert drift(stack) == {}
        stack.produce(as_records(off[: len(off) // 3]))
        stack.wait_until_scored()
        worker.kill()
    with WorkerProcess(stack) as later:
        later.wait_ready(stack.partitions)
        stack.produce(as_records(off[len(off) // 3 :]))
        stack.wait_until_scored()
        wait_until(lambda: len(about(stack, "ms")) == stack.partitions, "each partition to notice")
        metrics = later.metrics()
        assert 'offbeat_drift_total{stream="orders",type="input_drift"}' in metrics
        assert 'field="ms",kind="distribution",partition="0",stream="orders"' in metrics
        stack.produce(as_records(again))
        stack.wait_until_scored()
        wait_until(lambda: len(about(stack, "ms")) == 2 * stack.partitions, "each partition to be well again")
        assert later.stop() == 0
    for told in about(stack, "ms"):
        assert told["type"] == "input_drift"
        assert START + 60 * MINUTE <= told["since_ms"] <= START + 100 * MINUTE
        assert told["action"] == ("retrain" if told["phase"] == "began" else "watch")
    assert {told["field"] for told in drift(stack).values()} <= {"ms", None}  # nothing else changed but scores
    file_told = set[tuple[Any, ...]]()
    assert saved(stack) == scored(stack, file_told)
    assert file_told == {
        (told["source"]["partition"], told["source"]["offset"], told["type"], told["field"], told["detail"])
        for told in drift(stack).values()
    }


def about(stack: Stack, field: str) -> list[dict[str, Any]]:
    return [told for told in drift(stack).values() if told["field"] == field]


def saved(stack: Stack) -> dict[int, bytes]:
    """What each partition remembers on disk."""
    found = {}
    for p in range(stack.partitions):
        cold = ColdRows(stack.saved_rows(p), Memory(16 << 20))
        try:
            found[p] = decode_kept(cold.beginning_with(PREFIX))[DRIFT].pack()
        finally:
            cold.close()
    return found


def scored(stack: Stack, told: set[tuple[Any, ...]]) -> dict[int, bytes]:
    """What `offbeat score` remembers after the same records, and tells on the way."""
    stack.write_back(stack.folder / "records.jsonl")
    settings = load_settings(stack.config_path, {})

    def on_drift(place: Place, event: DriftEvent) -> None:
        told.add((place.partition, event.offset, event.type, event.field, detail_of(event)))

    scorer = Scorer(settings, "orders", load_serving(settings, "orders"), on_drift)
    assert list(scorer.score(list(read_lines(stack.folder / "records.jsonl", stack.source))))
    return {place.partition: of.state.kept[DRIFT].pack() for place, of in scorer._partitions.items()}
