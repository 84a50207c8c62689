"""What other loads do to the whole path: more fields, few sessions and a million, of which few are in memory.

Each load is measured in turn over records that lie on its topic, by one worker with checkpoints every 250 ms and about
1 % anomalies; shares are of medians in one run.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console

from benchmarks.slice_workloads import KINDS, records_of
from benchmarks.stack import STREAM, Stack, send
from benchmarks.steady import Steady, measure
from benchmarks.workloads import START_MS, keyed_events, zipf_events
from pipeline.broker import LocalBroker

_ALL = 2_000_000  # rows in memory: for all
_HOT_SHARE = 0.05
_FIELDS = KINDS["3 tokens, 3 numbers"]
_HISTORY = (600, 12)  # sessions, and events of each
_MODEL = {"model": {"hidden": 64, "max_epochs": 4}}  # of fields that chance fills, from which there is nothing to learn


@dataclass(frozen=True)
class _Load:
    """A topic's records, and the config they are read with."""

    topic: str
    hot_sessions: int = _ALL
    stream: dict[str, Any] = field(default_factory=dict)


def run(
    records: int, sessions: int, repeats: int, screen: Console, names: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """Measure each load, or those named, `repeats` times; many sessions are ten times `sessions`, few a hundredth."""
    fields = {name: _FIELDS.section[name] for name in ("tokens", "numbers")}
    loads = {
        "1 token": _Load("usual"), "3 tokens, 3 numbers": _Load("fields", stream=fields | _MODEL),
        "few sessions": _Load("few"), "many sessions": _Load("many"), "many sessions, uniform keys": _Load("uniform"),
        "many sessions, few in memory": _Load("many", hot_sessions=round(_HOT_SHARE * 10 * sessions)),
    }  # fmt: skip
    loads = {name: load for name, load in loads.items() if not names or name in names}
    topics: dict[str, Callable[[], Iterable[tuple[bytes, bytes]]]] = {
        "usual": lambda: zipf_events(1, records, sessions), "fields": lambda: _with_fields(records, sessions),
        "few": lambda: zipf_events(1, records, max(1, sessions // 100)),
        "many": lambda: zipf_events(1, records, 10 * sessions),
        "uniform": lambda: islice(keyed_events(1, 10 * sessions, uniform=True), records),
    }  # fmt: skip
    runs: dict[str, list[Steady]] = {name: [] for name in loads}
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "broker", ephemeral=True) as broker:
        filled = set[str]()
        for i in range(repeats):
            for number, (name, load) in enumerate(loads.items()):
                stack = _stack(broker.address, Path(folder) / f"{number}-{i}", load)
                if load.topic not in filled:
                    send(broker.address, stack.source, topics[load.topic]())
                    filled.add(load.topic)
                runs[name].append(measure(stack, records))
                _tell(f"run {i + 1} of {repeats}, {name}", runs[name][-1], screen)
    return {
        "benchmark": "loads", "records": records, "sessions": sessions,
        "runs": {name: [asdict(one) for one in of_load] for name, of_load in runs.items()},
    } | ({} if names else _ratios(runs))  # fmt: skip


def _ratios(runs: dict[str, list[Steady]]) -> dict[str, float]:
    return {
        "fields_ratio": _rate(runs["3 tokens, 3 numbers"]) / _rate(runs["1 token"]),
        "few_in_memory_ratio": _rate(runs["many sessions, few in memory"]) / _rate(runs["many sessions"]),
        "few_in_memory_goal": 0.5,
        "many_over_few_cost": _cost(runs["many sessions"]) / _cost(runs["few sessions"]),
        "many_over_few_goal": 2.0,
    }  # fmt: skip


def _stack(address: str, folder: Path, load: _Load) -> Stack:
    stack = Stack.make(
        address, folder, folder.name, source=f"{load.topic}.events", stream=load.stream,
        state={"hot_sessions": load.hot_sessions},
    )  # fmt: skip
    if load.stream:  # the bundle that is there knows a single field
        (folder / "history.jsonl").write_bytes(b"\n".join(_history()))
        stack.run("train", "--stream", STREAM, "--input", "history.jsonl", "--promote")
    return stack


def _history() -> Iterator[bytes]:
    sessions, length = _HISTORY
    rng = random.Random(3)
    for at in range(sessions * length):
        yield orjson.dumps({"session": f"h-{at % sessions}", "ts": START_MS + at, **_FIELDS.event(rng)})


def _with_fields(records: int, sessions: int) -> Iterable[tuple[bytes, bytes]]:
    return ((one.key, one.value) for one in records_of(_FIELDS, 1, records, sessions, "zipf"))


def _rate(runs: list[Steady]) -> float:
    return median(one.records_per_s for one in runs)


def _cost(runs: list[Steady]) -> float:
    return median(one.processor_us for one in runs)


def _tell(what: str, found: Steady, screen: Console) -> None:
    screen.print(
        f"  {what}: {found.records_per_s:,.0f} records/s, {found.processor_us:.1f} us of processor and "
        f"{found.written_bytes:,.0f} bytes to disk each, {found.resident_mb:,.0f} MB"
    )
