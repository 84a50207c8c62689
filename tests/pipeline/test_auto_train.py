"""A first bundle trained beside the worker: when it begins, who begins it, and that its failure hurts nobody."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipeline.auto_train import AutoTrain
from pipeline.metrics import Metrics
from pipeline.settings import load_settings
from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, shop_events, wait_until


def running(code: str) -> Callable[[str], Sequence[str]]:
    """A training that is this Python code."""
    return lambda stream: (sys.executable, "-c", code, stream)


def make(tmp_path: Path, code: str) -> tuple[AutoTrain, Callable[[str], float]]:
    """One that begins after 10 sessions, and how often a training ended in some way."""
    registry = CollectorRegistry()
    auto = AutoTrain(10, tmp_path / "offbeat.yaml", Metrics(registry), running(code))

    def count(result: str) -> float:
        labels = {"stream": "orders", "result": result}
        return registry.get_sample_value("offbeat_auto_trainings_total", labels) or 0.0

    return auto, count


SOUND = "import json; print('reading'); print(json.dumps({'promoted': True, 'digest': 'ab'}))"


def test_it_begins_after_enough_sessions_where_partition_0_is_ours(tmp_path: Path) -> None:
    """Not before, not elsewhere, and once it has succeeded never again."""
    auto, count = make(tmp_path, SOUND)
    auto.ended("orders", 50)
    assert count("promoted") == 0
    auto.owns("orders", yes=True)
    auto.ended("other", 50)
    auto.ended("orders", 0)
    wait_until(lambda: count("promoted") == 1, "a training")
    auto.ended("orders", 100)
    auto.stop()
    assert count("promoted") == 1
    lost, count = make(tmp_path, SOUND)
    lost.owns("orders", yes=True)
    lost.owns("orders", yes=False)
    lost.ended("orders", 100)
    lost.stop()
    assert count("promoted") == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('bundle ab does not serve: it alarms')", "bundle ab does not serve: it alarms"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with -9"),
        ("print('no json')", "JSONDecodeError"),
        ("", "IndexError"),
    ],
)
def test_a_failure_is_said_and_tried_again_later(
    code: str, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the training does, the worker's side says it in a sentence, and begins anew after as many sessions."""
    from pipeline.logs import configure_logs

    configure_logs()
    auto, count = make(tmp_path, code)
    auto.owns("orders", yes=True)
    auto.ended("orders", 10)
    wait_until(lambda: count("failed") == 1, "a failure")
    (said,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "no first bundle yet" in line]
    assert why in said["why"]
    assert said["again_after"] == 20
    wait_until(lambda: auto._thread is not None and not auto._thread.is_alive(), "its end")
    auto.ended("orders", 9)
    time.sleep(0.1)
    assert count("failed") == 1
    auto.ended("orders", 1)
    wait_until(lambda: count("failed") == 2, "another try")
    auto.stop()


def test_a_missing_program_is_a_failure_too(tmp_path: Path) -> None:
    """No process at all."""
    registry = CollectorRegistry()
    auto = AutoTrain(1, tmp_path / "offbeat.yaml", Metrics(registry), lambda _stream: ("/no/such/program",))
    auto.owns("orders", yes=True)
    auto.ended("orders", 1)
    labels = {"stream": "orders", "result": "failed"}
    wait_until(lambda: registry.get_sample_value("offbeat_auto_trainings_total", labels) == 1, "a failure")


def test_stopping_ends_a_training(tmp_path: Path) -> None:
    """A worker that stops leaves no process behind, and counts none as failed."""
    auto, count = make(tmp_path, "import time; time.sleep(600)")
    auto.owns("orders", yes=True)
    auto.ended("orders", 10)
    process = wait_until(lambda: auto._process, "a process")
    auto.stop()
    assert process.wait(PATIENCE_S) != 0
    assert count("failed") == 0


def test_a_stream_trains_itself(stack: Stack) -> None:
    """From nothing: a worker scores online, trains after so many sessions, takes the bundle, and goes on under it."""
    (stack.folder / "bundles" / "orders" / "serving").unlink()
    for bundle in (stack.folder / "bundles" / "orders").iterdir():
        bundle.rename(stack.folder / bundle.name)
    with WorkerProcess(stack, options=("--auto-train", "150")) as worker:
        stack.produce(as_records(shop_events(8, 1_200)))
        serving = stack.folder / "bundles" / "orders" / "serving"
        wait_until(serving.exists, "a bundle that serves", 5 * PATIENCE_S)  # a training is nice: it may have to wait
        wait_until(lambda: "bundle promoted" in worker.log_path.read_text(), "that the worker takes it")
        stack.produce(as_records(shop_events(9, 100)))
        stack.wait_until_scored()
        wait_until(lambda: "first training ended" in worker.log_path.read_text(), "that the training ends")
        assert worker.stop() == 0
    statuses = [d["status"] for d in stack.read_json("decisions")]
    assert set(statuses) == {"warming_up", "ok"}
    digest = serving.read_text().strip()
    assert {m["digest"] for m in stack.read_json("models")} == {digest}
    manifest = json.loads((stack.folder / "bundles" / "orders" / digest / "manifest.json").read_text())
    assert manifest["lineage"]["reason"] == "the first, by offbeat worker --auto-train"
    ended = [json.loads(line) for line in worker.log_path.read_text().splitlines() if "first training ended" in line]
    assert [e["promoted"] for e in ended] == [True]


def test_a_partition_may_have_its_first_record_meanwhile(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic is read again for the checks; what has come into an empty partition since was not trained on."""
    from pipeline import train
    from pipeline.first_bundle import train_first

    learn = train.learn_bundle
    first, later = as_records(shop_events(8, 900)), as_records(shop_events(9, 60))
    stack.produce_to(stack.source, 1, first)

    def learn_and_produce(*given: Any, **named: Any) -> Any:
        learned = learn(*given, **named)
        stack.produce_to(stack.source, 0, later)
        return learned

    monkeypatch.setattr(train, "learn_bundle", learn_and_produce)
    monkeypatch.chdir(stack.folder)
    told = train_first(load_settings(stack.config_path), "orders")
    assert told["promoted"] is False  # the stack's own bundle serves already
    assert told["sessions"] > 20
