"""The whole path: producer, broker, one worker with checkpoints and outputs, all on this machine.

Records are produced while the worker runs; the clock starts with the first and stops when a checkpoint covers the
last. GRU 64, one token field of 64 ids, about 1 % anomalies, 1 % of decisions, a checkpoint every 250 ms.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.stack import Stack, WorkerProcess, send
from benchmarks.workloads import zipf_events
from pipeline.broker import LocalBroker


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
    stack = Stack.make(address, folder, app)
    with WorkerProcess(stack) as worker:
        worker.wait_ready()
        began = time.monotonic()
        send(address, stack.source, zipf_events(1, records, sessions))
        ended = worker.wait_for(lambda: stack.saved() >= records)
        worker.stop()
    return records / (ended - began)
