"""Labels on a real broker: what they silence and when, what is said before, and what counts when people disagree."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pipeline.label_command import Told, queue_of, same_pattern
from pipeline.outputs import Place
from pipeline.wire import Label
from tests.kafka import Stack, WorkerProcess, by_id, wait_until
from tests.pipeline.test_commands_kafka import fails

STRANGE = {"action": "teleport", "status": "failed"}


def strange(number: int) -> list[tuple[bytes, bytes]]:
    """Sessions of one event each, all of one pattern."""
    events = [{"session": f"x-{number + i}", "ts": 1_700_000_000_000 + number + i, **STRANGE} for i in range(3)]
    return [(e["session"].encode(), json.dumps(e).encode()) for e in events]


def anomalies(stack: Stack) -> dict[str, dict[str, Any]]:
    """Records' anomalies by id."""
    told = by_id(stack.read_json("anomalies"), ignore=["detected_ms"])
    return {i: one for i, one in told.items() if one["type"] == "record"}


def knowing(worker: WorkerProcess, label: str) -> int:
    """How many partitions this worker has told such a label."""
    return sum((one["event"], one.get("label")) == ("pattern labelled", label) for one in worker.log())


def test_a_label_silences_its_pattern_and_another_brings_it_back(stack: Stack) -> None:
    """From the next checkpoint on, over a restart too; a preview says what else; the later label wins."""
    stack.configure(stream={"promise": {"false_alarm_rate": 0.5, "adapt": False}})
    with WorkerProcess(stack) as worker:
        stack.produce(strange(0))
        stack.wait_until_scored()
        wait_until(lambda: len(anomalies(stack)) == 3, "three anomalies")
        first = next(iter(anomalies(stack)))
        assert len({one["pattern"] for one in anomalies(stack).values()}) == 1
        assert fails(stack, 2, ("label", first), "either --normal or --anomaly")
        assert fails(stack, 2, ("label", first, "--normal"), "asks before it silences", "--yes")
        done = stack.run("label", first, "--normal", "--yes", "--reason", "a known job")
        assert "2 other anomalies would have been silenced" in " ".join(done.stderr.split())
        assert done.stderr.count("came teleport") + done.stderr.count("came failed") == 2
        assert f"Labelled {first} as normal" in done.stdout
        wait_until(lambda: knowing(worker, "normal") == stack.partitions, "all partitions to know the label")
        stack.produce(strange(10))
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert len(anomalies(stack)) == 3
    silenced = [d for d in stack.read_json("decisions") if d["labelled"] == "normal" and d["type"] == "record"]
    assert {d["session"] for d in silenced} == {"x-10", "x-11", "x-12"}
    assert all(d["anomaly"] is False and d["p_value"] <= 0.5 for d in silenced)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        stack.produce(strange(20))
        stack.wait_until_scored()
        assert len(anomalies(stack)) == 3, "a restart forgets no label"
        assert 'offbeat_labelled{label="normal",stream="orders"} 1.0' in worker.metrics()
        assert 'offbeat_precision{stream="orders"} 0.0' in worker.metrics()
        other = list(anomalies(stack))[1]
        done = stack.run("label", other, "--anomaly")
        assert "of the same pattern, as normal before" in " ".join(done.stderr.split())
        assert "the later label wins" in " ".join(done.stderr.split())
        wait_until(lambda: 'offbeat_precision{stream="orders"} 0.5' in worker.metrics(), "the label")
        wait_until(lambda: knowing(worker, "anomaly") == stack.partitions, "all partitions to know the label")
        stack.produce(strange(30))
        stack.wait_until_scored()
        wait_until(lambda: len(anomalies(stack)) == 6, "anomalies again")
    done = stack.run("label", first, "--anomaly")
    assert "labelled it as normal before; the later label wins" in " ".join(done.stderr.split())
    (said,) = stack.run("tail", "labels", "--from-start", "--limit", "1").stdout.splitlines()
    assert any(f"{i}  {what}, says " in said for i in (first, other) for what in ("normal", "anomaly"))
    listed = json.loads(stack.run("labels", "list", "--json").stdout)
    assert {label["id"]: label["label"] for label in listed["labels"]} == {first: "anomaly", other: "anomaly"}
    assert listed["precision"] == {"orders": 1.0}
    assert {label["session"] for label in listed["labels"]} == {None}, "only of repartitioned streams"


def test_what_cannot_be_labelled_is_said(stack: Stack) -> None:
    """No id, no such stream, no topics yet, no such anomaly: one sentence each, and nothing is written."""
    assert fails(stack, 2, ("label", "nonsense", "--normal"), "is no id of an anomaly")
    assert fails(stack, 2, ("label", "nobody/x/0/1/record", "--normal"), "nobody")
    wanted = f"orders/{stack.source}/0/1/record"
    assert fails(stack, 1, ("label", wanted, "--normal", "--yes"), "does not exist", "offbeat topics --create")
    stack.run("topics", "--create")
    assert fails(stack, 2, ("label", wanted, "--normal", "--yes"), "there is no anomaly", "retention")
    assert stack.read_json("labels") == []
    assert stack.read_json("controls") == []
    assert json.loads(stack.run("labels", "list", "--json").stdout) == {"labels": [], "precision": {}}


def anomaly(number: int, pattern: str, p_value: float, age_days: float = 0.0) -> dict[str, Any]:
    detected = int(time.time() * 1000 - age_days * 86_400_000)
    about = {"pattern": pattern, "p_value": p_value, "detected_ms": detected, "stream": "orders"}
    return {"id": f"orders/{Place('t', 0).topic}/0/{number}/record"} | about


def label(number: int, pattern: str, said: Any, at_ms: int) -> Label:
    about = {"stream": "orders", "label": said, "pattern": pattern, "by": "me", "at_ms": at_ms, "reason": None}
    return Label.model_validate({"id": anomaly(number, pattern, 1)["id"], **about})


@pytest.mark.parametrize("labelled", [False, True])
def test_the_queue_begins_with_what_is_least_sure(*, labelled: bool) -> None:
    """One of each pattern, that nearest to the threshold; patterns with a label are left out."""
    a, b, c = "a" * 16, "b" * 16, "c" * 16
    made = [anomaly(1, a, 1e-6), anomaly(2, a, 9e-4), anomaly(3, b, 1e-5), anomaly(4, c, 9e-4), anomaly(5, c, 1e-7)]
    made += [anomaly(6, c, 1e-7)]
    told = Told({one["id"]: one for one in made}, {"x": label(9, a, "normal", 1)} if labelled else {})
    queue = [(one["pattern"][0], alike) for one, alike in queue_of(told, {"orders": 1e-3})]
    assert queue == ([("c", 3), ("b", 1)] if labelled else [("c", 3), ("a", 2), ("b", 1)])
    assert queue_of(told, {"others": 1e-3}) == []


def test_a_preview_is_of_a_week_and_the_latest_label_counts() -> None:
    """Older anomalies are not counted; of two labels of one pattern the later is the pattern's."""
    a = "a" * 16
    made = [anomaly(1, a, 1e-4), anomaly(2, a, 1e-4, 6.9), anomaly(3, a, 1e-4, 7.1), anomaly(4, "b" * 16, 1e-4)]
    labels = {"x": label(1, a, "normal", 5), "y": label(2, a, "anomaly", 9)}
    told = Told({one["id"]: one for one in made}, labels)
    assert [one["id"].split("/")[3] for one in same_pattern(told, a, made[0]["id"])] == ["2"]
    assert told.by_pattern[a].label == "anomaly"
    assert (told.counts("orders").normal, told.counts("orders").anomaly) == (1, 1)
    assert (told.counts("other").normal, told.counts("other").anomaly) == (0, 0)
