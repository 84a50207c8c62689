"""A worker on a topic that is full before it starts, measured when it is well under way: start and end do not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.stack import PARTITIONS, Stack, WorkerProcess

_FROM, _TO = 0.1, 0.98  # of the records, between which the time is taken
_LOOK_S = 0.25  # two pages a look; a worker answers some ten a second


@dataclass(frozen=True)
class Steady:
    """Records a second, processor time and bytes to disk for each, a partition's checkpoint interval, and memory."""

    records_per_s: float
    processor_us: float
    written_bytes: float
    interval_ms: float
    resident_mb: float


def measure(stack: Stack, records: int) -> Steady:
    """Score the records that the stack's topic holds, all partitions together, by one worker."""
    with WorkerProcess(stack) as worker:
        worker.wait_started()
        taken, scored, processor, written, checkpoints = under_way(records, lambda: _look(worker))
        resident = worker.resident()
    interval_ms = PARTITIONS * taken * 1e3 / max(1, checkpoints)
    return Steady(scored / taken, processor / scored * 1e6, written / scored, interval_ms, resident / 1e6)


def under_way(records: int, look: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """By how much what `look` sees grows from the last look before a tenth of the records until nearly all are scored.

    Parameters
    ----------
    look
        Its second figure is how many records are scored.
    """
    first = last = look()
    while last[1] < _TO * records:
        if last[1] < _FROM * records:  # of few records, or on a busy machine, the next look may be the last
            first = last
        time.sleep(_LOOK_S)
        last = look()
    if last[1] <= first[1]:
        message = f"the worker had scored all {records:,} records before it was looked at: measure more"
        raise RuntimeError(message)
    return tuple(b - a for a, b in zip(first, last, strict=True))


def _look(worker: WorkerProcess) -> tuple[float, float, float, float, float]:
    """Time, records scored, processor time, bytes written, checkpoints."""
    return (
        time.monotonic(), worker.metric("offbeat_records_total"), worker.processor_s(), float(worker.written()),
        worker.metric("offbeat_checkpoint_seconds_count"),
    )  # fmt: skip
