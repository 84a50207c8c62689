"""Segments on a real broker: the worker, killed once, and `offbeat score` judge by the same calibrations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from detectors.calibration import Calibration
from detectors.packing import pack
from features.tokens import stable_hash
from models.bundle import promote, write_bundle
from tests.conftest import make_learned, random_weights, with_segments
from tests.kafka import Stack, WorkerProcess, as_records, by_id, shop_events
from tests.pipeline.test_worker import decisions_of, scored_by_file

SHOPS = ("north", "süd", "few", None)


def _write_bundle(stack: Stack) -> None:
    learned, rng = with_segments(make_learned()), np.random.default_rng(5)
    files = pack(
        learned.vocabulary, random_weights(0, learned.vocabulary.sizes, 16),
        Calibration.learn(rng.gamma(4, 1, 500)), Calibration.learn(rng.gamma(9, 1, 300)),
        segments=(learned.segment_records, learned.segment_sessions),
    )  # fmt: skip
    directory = stack.folder / "bundles" / "orders"
    content = {"schema": {"tokens": ["action", "status"], "hidden": 16, "core": "gru"}}
    promote(directory, write_bundle(directory, content, files, "now"))


def _events(sessions: int) -> list[dict[str, Any]]:
    """Each event names a shop of its own, so that a session's first is one of several."""
    events = list(shop_events(3, sessions))
    return [event | {"shop": {"name": SHOPS[i * 7 % 4]}} for i, event in enumerate(events)]


def test_worker_and_file_agree_on_segments(stack: Stack) -> None:
    """Decisions and p-values equal the file's over a kill -9; a session keeps its first record's segment."""
    as_calibrated = {"false_alarm_rate": 0.1, "adapt": False}
    stack.configure(stream={"segment": "shop.name", "promise": as_calibrated})
    _write_bundle(stack)
    events = _events(400)
    for half, stops in ((events[: len(events) // 2], False), (events[len(events) // 2 :], True)):
        stack.produce(as_records(half))
        with WorkerProcess(stack) as worker:
            stack.wait_until_scored()
            if stops:
                assert worker.stop() == 0
            else:
                worker.kill()
    decisions = by_id(stack.read_json("decisions"))
    assert decisions == decisions_of(scored_by_file(stack))
    for kind in ("record", "session"):
        assert {d["segment"] for d in decisions.values() if d["type"] == kind} == set(SHOPS)
    own = with_segments(make_learned()).segment_records[stable_hash("süd")]
    for decision in decisions.values():
        if decision["type"] == "record" and decision["segment"] == "süd":
            assert decision["p_value"] == own.p_values(np.array([decision["score"]], np.float32))[0]
    assert all("segment" in anomaly for anomaly in stack.read_json("anomalies"))
    name = events[-1]["session"]
    shown = json.loads(stack.run("sessions", "show", "-s", "orders", name, "--json").stdout)
    first = [d for d in decisions.values() if d["type"] == "record" and d["session"] == name][-shown["events"] :]
    assert shown["segment"] == min(first, key=lambda d: int(d["id"].split("/")[-2]))["segment"]
