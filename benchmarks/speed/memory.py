"""Memory and disk under many live sessions: a worker with room for few of them, under a steady load.

A million sessions are put into the changelog first, so the worker begins with all of them and gets events for some: a
few sessions have most of them (Zipf), or all have alike (uniform), and nearly every event needs a row that is not in
memory.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.speed.recovery import fill
from benchmarks.stack import PARTITIONS, Stack, WorkerProcess, send
from benchmarks.workloads import keyed_events
from pipeline.broker import LocalBroker

_HOT = 50_000
_WARM_UP = 0.3  # of the time, not counted: caches fill, and the allocator finds its size
_BURST_S = 0.25


def run(sessions: int, seconds: float, records_per_s: int, screen: Console) -> dict[str, Any]:
    """Resident memory over time with Zipf keys, then disk and speed with uniform ones."""
    found: dict[str, Any] = {"benchmark": "memory", "sessions": sessions, "hot_sessions": _HOT}
    for keys in ("zipf", "uniform"):
        with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
            state = {"hot_sessions": min(_HOT, max(100, sessions // 20))}
            stack = Stack.make(broker.address, Path(name) / "stack", keys, state=state)
            fill(stack, sessions)
            with WorkerProcess(stack) as worker:
                worker.wait_ready()
                found[keys] = _watch(stack, worker, keys, sessions, seconds, records_per_s)
        shown = "  ".join(f"{k} {v:,.3g}" for k, v in found[keys].items())
        screen.print(f"  {keys} keys: {shown}")
    return found


def _watch(
    stack: Stack, worker: WorkerProcess, keys: str, sessions: int, seconds: float, records_per_s: int
) -> dict[str, float]:
    stop = threading.Event()
    feeder = threading.Thread(
        target=send, args=(stack.address, stack.source, _paced(keys, sessions, records_per_s, stop))
    )
    written, records, checkpoints = (
        worker.written(), worker.metric("offbeat_records_total"), worker.metric("offbeat_checkpoint_seconds_count"),
    )  # fmt: skip
    began = time.monotonic()
    feeder.start()
    resident = [(0.0, worker.resident())]
    while resident[-1][0] < seconds:
        time.sleep(1.0)
        resident.append((time.monotonic() - began, worker.resident()))
    stop.set()
    feeder.join()
    done = worker.metric("offbeat_records_total") - records
    taken = worker.metric("offbeat_checkpoint_seconds_count") - checkpoints
    at, size = (np.array(column, np.float64) for column in zip(*resident, strict=True))
    late = at >= _WARM_UP * seconds
    slope = np.polyfit(at[late], size[late], 1)[0] if late.sum() > 2 else 0.0
    return {
        "records_per_s": done / seconds, "rss_mb_median": float(np.median(size[late])) / 2**20,
        "rss_mb_range": float(np.ptp(size[late])) / 2**20, "rss_mb_per_hour": float(slope) * 3600 / 2**20,
        "written_bytes_per_record": (worker.written() - written) / max(1.0, done),
        "checkpoint_interval_ms": PARTITIONS * seconds * 1e3 / max(1.0, taken),
    }  # fmt: skip


def _paced(keys: str, sessions: int, records_per_s: int, stop: threading.Event) -> Iterator[tuple[bytes, bytes]]:
    """Events without end, at a steady rate; a worker that cannot keep up shows in `records_per_s`."""
    burst = max(1, int(records_per_s * _BURST_S))
    began = time.monotonic()
    for sent, record in enumerate(keyed_events(7, sessions, uniform=keys == "uniform"), 1):
        if stop.is_set():
            return
        yield record
        if sent % burst == 0:
            time.sleep(max(0.0, began + sent / records_per_s - time.monotonic()))
