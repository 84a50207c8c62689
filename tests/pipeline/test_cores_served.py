"""A worker serves every core, by torch where there is no kernel or it is asked for, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.kafka import Stack, WorkerProcess, as_records, shop_events, write_untrained_bundle

JUDGED = {
    "score", "p_value", "calibrated_p_value", "tag", "tag_confidence", "anomaly", "end_surprise", "worst_offset",
    "contributions",
}  # fmt: skip


@pytest.mark.parametrize(
    ("core", "second", "asked", "runtime"),
    [
        ("lstm", "tcn", "torch", "torch-cpu"), ("transformer", None, "auto", "torch-cpu"),
        ("lstm", "tcn", "auto", "kernel"), ("tcn", None, "kernel", "kernel"),
    ],
)  # fmt: skip
def test_worker_and_file_agree(core: str, second: str | None, asked: str, runtime: str, stack: Stack) -> None:
    """Killed once in between, a worker decides on what `offbeat score` does, by torch with other last digits of scores.

    So does its second stage, where it has one.
    """
    exact = runtime == "kernel"
    nats = 0 if exact else 1e-3
    section = {"model": {"core": core, "hidden": 16, "context": 6}}
    section |= {"second_stage": {"core": second, "passes": 1_000}} if second else {}
    stack.configure(stream=section, device="cpu", runtime=asked)
    write_untrained_bundle(stack, core=core, second=second)
    events = as_records(shop_events(1, 200))
    stack.produce(events[: len(events) // 2])
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert ("libtorch" in Path(f"/proc/{worker.process.pid}/maps").read_text()) != exact
        assert [line["runtime"] for line in worker.log() if line["event"] == "stream"] == [runtime]
        stack.produce(events[len(events) // 2 :])
        worker.kill()
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    records = stack.folder / "records.jsonl"
    stack.write_back(records)
    stack.run("score", "-s", "orders", "--input", str(records), "--output", "verdicts.jsonl")
    lines = map(json.loads, (stack.folder / "verdicts.jsonl").read_text().splitlines())
    expected = {v["id"]: v for v in lines if v.get("ended") != "input"}
    decisions = stack.read_json("decisions")
    assert {v["id"] for v in decisions} == expected.keys()
    for decision in decisions:
        wanted = expected[decision["id"]]
        assert decision["score"] == pytest.approx(wanted["score"], abs=nats, rel=nats)
        same = decision.keys() & wanted.keys() - (set() if exact else JUDGED)
        assert {k: decision[k] for k in same} == {k: wanted[k] for k in same}
    anomalies = {v["id"] for v in decisions if v["anomaly"]}
    assert len(anomalies ^ {v["id"] for v in expected.values() if v["anomaly"]}) < (1 if exact else 5)
    assert 0 < len(anomalies) < len(expected)
    if second:
        again = {v["anomaly"]: v for v in stack.read_json("rescores")}
        assert again.keys() <= anomalies
        known = {v["id"]: v["rescored"] for v in expected.values() if v.get("rescored")}
        assert len(again.keys() ^ known.keys()) < 5
        assert len(again) > 20
        for identity in again.keys() & known.keys():
            assert again[identity]["score"] == pytest.approx(known[identity]["score"], abs=nats, rel=nats)
            assert again[identity]["core"] == second


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent_ends_a_worker(stack: Stack) -> None:
    """With a sentence, before it touches anything."""
    stack.configure(device="cuda")
    done = stack.run("worker", check=False)
    assert done.returncode == 1
    assert "the config asks for device: cuda, and torch finds no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
