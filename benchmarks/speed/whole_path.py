"""The whole path: producer, broker, one worker with checkpoints and outputs, all on this machine.

Records are produced while the worker runs; the clock starts with the first and stops when a checkpoint covers the
last. GRU 64, one token field of 64 ids, about 1 % anomalies, 1 % of decisions, a checkpoint every 250 ms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from confluent_kafka import Producer
from rich.console import Console

from benchmarks.kafka import committed_offsets
from benchmarks.workloads import VOCABULARY, zipf_events
from detectors.calibration import Calibration
from detectors.parts import pack
from features.tokens import Vocabulary
from models.bundle import promote, write_bundle
from pipeline.broker import LocalBroker

_COMMAND = [sys.executable, "-P", "-m", "pipeline.cli"]
_HIDDEN = 64
_PARTITIONS = 4


def run(records: int, sessions: int, repeats: int, screen: Console) -> dict[str, Any]:
    """Measure `repeats` times over one broker; rates in records/s."""
    rates = []
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        for i in range(repeats):
            folder = Path(name) / f"run-{i}"
            rates.append(_once(broker.address, folder, f"bench{i}", records, sessions))
            screen.print(f"  run {i + 1} of {repeats}: {rates[-1]:,.0f} records/s")
    return {
        "benchmark": "whole path", "records": records, "sessions": sessions, "records_per_s": rates,
        "records_per_s_median": median(rates), "goal": 40_000,
    }  # fmt: skip


def _once(address: str, folder: Path, app: str, records: int, sessions: int) -> float:
    _configure(folder, address, app)
    subprocess.run([*_COMMAND, "topics", "--create", "-c", "offbeat.yaml"], cwd=folder, check=True, capture_output=True)
    log = folder / "worker.log"
    with log.open("wb") as file:
        worker = subprocess.Popen([*_COMMAND, "worker", "-c", "offbeat.yaml"], cwd=folder, stdout=file, stderr=file)
    try:
        while log.read_text().count("partition opened") < _PARTITIONS:
            assert worker.poll() is None, log.read_text()
            time.sleep(0.1)
        producer = Producer({"bootstrap.servers": address, "partitioner": "murmur2_random", "linger.ms": 20})
        began = time.monotonic()
        for key, value in zipf_events(1, records, sessions):
            while True:
                try:
                    producer.produce(f"{app}.events", value, key=key)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.flush(60)
        while sum(committed_offsets(address, app, f"{app}.events", _PARTITIONS).values()) < records:
            assert worker.poll() is None, log.read_text()
            time.sleep(0.05)
        return records / (time.monotonic() - began)
    finally:
        worker.terminate()
        worker.wait(30)


def _configure(folder: Path, address: str, app: str) -> None:
    """A config and a bundle with random weights: speed does not depend on what was learned."""
    folder.mkdir(parents=True)
    stream = {
        "topic": f"{app}.events", "start": "earliest", "time": "ts", "tokens": ["action"],
        "session": {"by": "session", "gap": "1h"}, "model": {"hidden": _HIDDEN},
        "promise": {"false_alarm_rate": 0.01},
    }  # fmt: skip
    config = {
        "broker": address, "app": app, "http": {"port": 0}, "topics": {"prefix": app, "partitions": _PARTITIONS},
        "streams": {"events": stream},
    }  # fmt: skip
    (folder / "offbeat.yaml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(("action",), (VOCABULARY,))
    size = vocabulary.sizes[0]
    shapes = {
        "start": (_HIDDEN,), "core.weight_ih_l0": (3 * _HIDDEN, 17), "core.weight_hh_l0": (3 * _HIDDEN, _HIDDEN),
        "core.bias_ih_l0": (3 * _HIDDEN,), "core.bias_hh_l0": (3 * _HIDDEN,), "embeddings.0.weight": (size, 16),
        "head.weight": (size + 1, _HIDDEN), "head.bias": (size + 1,),
    }  # fmt: skip
    weights = {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    # Scores of this untrained model lie around log(65); this normal curve puts about 1 % of them above the threshold.
    scores = Calibration.learn(rng.normal(np.log(size + 1), 0.35, 5_000))
    directory = folder / "offbeat-data" / "models" / "events"
    content = {"schema": {"tokens": ["action"], "hidden": _HIDDEN, "core": "gru"}}
    promote(directory, write_bundle(directory, content, pack(vocabulary, weights, scores, scores), "now"))
