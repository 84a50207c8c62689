"""What checkpoints and transactions cost: one worker scores a topic that is full before it starts.

Three ways, in turn, over the same records: practically no checkpoint (one a minute), one every 250 ms, and one every
250 ms with the outputs in its transaction. Records are counted by the worker's own metric between two moments when it
is well under way, so neither start nor end counts.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.stack import Stack, send
from benchmarks.steady import Steady, measure
from benchmarks.workloads import zipf_events
from pipeline.broker import LocalBroker

_WAYS: dict[str, dict[str, Any]] = {
    "none": {"checkpoint_interval": "1m"},
    "at_least_once": {"checkpoint_interval": "250ms"},
    "exactly_once": {"checkpoint_interval": "250ms", "delivery": "exactly_once"},
}
# Room for all: a store that is short of room saves earlier than the interval says.
_HOT = 2_000_000


def run(records: int, sessions: int, repeats: int, screen: Console) -> dict[str, Any]:
    """Measure each way `repeats` times; medians, and these against each other."""
    runs: dict[str, list[Steady]] = {way: [] for way in _WAYS}
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        source = "checkpoint.events"
        send_all = True
        for i in range(repeats):
            for way, settings in _WAYS.items():
                app = f"{way}-{i}"
                stack = Stack.make(
                    broker.address, Path(name) / app, app, source=source, state={"hot_sessions": _HOT}, **settings
                )
                if send_all:
                    send(broker.address, source, zipf_events(1, records, sessions))
                    send_all = False
                found = measure(stack, records)
                runs[way].append(found)
                screen.print(
                    f"  run {i + 1} of {repeats}, {way}: {found.records_per_s:,.0f} records/s, "
                    f"{found.processor_us:.1f} us of processor each, a checkpoint every {found.interval_ms:.0f} ms"
                )
    rate = {way: median(found.records_per_s for found in of_way) for way, of_way in runs.items()}
    return {
        "benchmark": "checkpoint", "records": records, "sessions": sessions,
        "runs": {way: [asdict(found) for found in of_way] for way, of_way in runs.items()},
        "records_per_s_median": rate["at_least_once"], "cost": 1 - rate["at_least_once"] / rate["none"],
        "cost_goal": 0.3, "exactly_once_ratio": rate["exactly_once"] / rate["at_least_once"], "exactly_once_goal": 0.8,
    }  # fmt: skip
