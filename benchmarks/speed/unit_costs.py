"""Unit costs for `offbeat plan`: `python -m benchmarks unit-costs --out FILE`, some twenty minutes on an idle machine.

What a worker spends is told apart by least squares: workers read the same records under settings that differ in how
many rows they save, how wide these are and how many checkpoints they take, and the processor time of each run is a sum
of records, rows, kilobytes and checkpoints. What needs no broker is timed on the product's own functions
(`benchmarks/speed/stages.py`). All is processor time but for reading rows back, which is by the clock.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Consumer
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.slice_workloads import BASE, KINDS, Keys, Kind, learn
from benchmarks.speed.cores import microseconds, weights_of
from benchmarks.speed.recovery import fill, replay
from benchmarks.speed.stages import Line, passes
from benchmarks.stack import PARTITIONS, STREAM, Stack, WorkerProcess, send
from benchmarks.steady import under_way
from benchmarks.workloads import keyed_events
from detectors.rows import RowShape, SessionRows
from features.profiles import ENTRIES
from features.sessions import SessionRules
from models.runtime import load_runtime
from models.spec import CORES, KERNELS, ModelSpec
from pipeline.broker import LocalBroker
from pipeline.capacity import row_bytes
from pipeline.cold_rows import ColdRows, session_key
from pipeline.log_bounds import log_bounds
from pipeline.row_format import RowFormat
from pipeline.store import RowStore
from pipeline.topics import changelog_topic
from pipeline.unit_costs import UnitCosts

_WIDTHS = (16, 32, 64, 128, 256)
_IDS, _BINS = 64, 34  # of a token field; of a number's bins, with what is missing and beyond
_OUTSIDE = ("decode", "intake", "lookup", "calibrate", "judge", "emit")  # stages beside the core's and saving
_ALARMS = 0.05  # share of records, where the bytes of anomalies are counted
_ENDS = 0.1  # share of records that end their session, where sessions are timed
_CONTEXTS = (32, 128)  # of rows narrow and wide
_ON_DISK = Path(__file__).parents[1] / "results"  # folders of the system may lie in memory, and are never written
_LOOK_S = 0.15
_FEW = 100  # sessions, so that checkpoints have few rows
_ROOM = 2_000_000  # rows in memory: for all
_SHAPE = RowShape(64, 32, 1, profile=ENTRIES)


@dataclass(frozen=True)
class Size:
    """How much is measured; few for a smoke run."""

    records: int = 400_000
    sessions: int = 100_000
    repeats: int = 3
    events: int = 50_000  # of each core and width
    rows: int = 200_000  # saved and read back
    sliced: tuple[int, int, int] = (20_000, 20_000, 5)  # records, sessions, passes of stages
    widths: tuple[int, ...] = _WIDTHS
    cores: tuple[str, ...] = CORES


# A worker takes so few that it must not be done before it is looked at first.
SMOKE = Size(40_000, 500, 1, 2_000, 4_000, (500, 200, 1), (64,), ("gru",))


class Run(NamedTuple):
    """What a worker did between two looks, and what it spent on it."""

    processor_us: float
    records: float
    rows: float
    row_kb: float
    checkpoints: float
    resident: int = 0


def run(size: Size, screen: Console) -> UnitCosts:
    """Measure all; takes a broker of its own."""
    cores = _cores(size, screen)
    costs: dict[str, Any] = {
        "machine": f"{machine()['processor']}, {machine()['cores']} cores", "measured": time.strftime("%F"),
        "cores": cores, "torch_bytes": _torch_bytes(),
    }  # fmt: skip
    costs |= _by_stages(size, screen)
    costs |= _of_disk(size.rows, screen)
    costs |= _of_workers(size, cores["gru"][64]["record_us"], screen)
    found = UnitCosts.model_validate(costs)
    screen.print(found.model_dump_json(indent=1, exclude={"cores"}))
    return found


# --- cores -----------------------------------------------------------------------------------------------------------


def _cores(size: Size, screen: Console) -> dict[str, dict[int, dict[str, float]]]:
    found: dict[str, dict[int, dict[str, float]]] = {}
    for core in size.cores:
        for hidden in size.widths:
            events = size.events // (1 if core in KERNELS else 4)
            one, fielded, numbered = (
                _core_us(core, hidden, sizes, events, size.repeats)
                for sizes in ((_IDS,), (_IDS,) * 3, (_IDS, *(_BINS,) * 3))
            )
            of = {
                "record_us": one, "field_us": max(0.0, fielded - one) / 2, "number_us": max(0.0, numbered - one) / 3
            }  # fmt: skip
            found.setdefault(core, {})[hidden] = {name: round(us, 3) for name, us in of.items()}
            screen.print(f"  {core:12} {hidden:4} " + "  ".join(f"{k} {v:.2f}" for k, v in of.items()))
    for core in ("linear", "seasonal"):
        one, four = (_by_numbers(core, count, size) for count in (1, 4))
        number = max(0.0, four - one) / 3
        of = {"record_us": max(0.0, one - number), "field_us": 0.0, "number_us": number}
        found[core] = {0: {name: round(us, 3) for name, us in of.items()}}
        screen.print(f"  {core:12}      " + "  ".join(f"{k} {v:.2f}" for k, v in of.items()))
    return found


def _core_us(core: str, hidden: int, sizes: tuple[int, ...], events: int, repeats: int) -> float:
    spec = ModelSpec(core, hidden, sizes)
    runtime = load_runtime(spec, weights_of(spec), "kernel" if core in KERNELS else "torch")
    return microseconds(runtime, spec, events, 1_000, repeats)


def _by_numbers(core: str, count: int, size: Size) -> float:
    """The score stage of a core that goes by so many numbers."""
    names = [f"n{i}" for i in range(count)]
    session = {"by": "session", "gap": "1d", "max_events": 1_000_000}
    section = {**BASE, "kind": "metrics", "numbers": names, "session": session, "model": {"core": core}}
    kind = Kind(section, lambda rng: {name: rng.gauss(40, 8) for name in names})
    return _stages(kind, size, ("zipf", 1.0))[0]["score"]


# --- stages ----------------------------------------------------------------------------------------------------------


def _stages(kind: Kind, size: Size, *ways: tuple[Keys, float]) -> list[dict[str, float]]:
    """For each way keys fall and rows are hot: microseconds of each stage, and bytes of messages under their topics."""
    records, sessions, repeats = size.sliced
    found = []
    with tempfile.TemporaryDirectory() as folder:
        settings, learned = learn(kind, Path(folder))
        for number, (keys, hot) in enumerate(ways):
            line = Line(settings, learned, Path(folder) / f"rows-{number}", max(2_000, int(hot * sessions)))
            took = passes(line, kind, records, sessions, keys, repeats)
            line.close()
            found.append(took | {topic: float(np.mean(of)) for topic, of in line.told.items()})
    return found


def _by_stages(size: Size, screen: Console) -> dict[str, Any]:
    one = KINDS["1 token"]
    fielded = Kind({**BASE, "tokens": ["action", "status", "country"]}, KINDS["3 tokens, 3 numbers"].event)
    numbered = Kind(
        {**BASE, "tokens": ["action"], "numbers": ["amount", "age", "took_ms"]}, KINDS["3 tokens, 3 numbers"].event
    )
    session = {"by": "session", "gap": "1d", "end_when": {"last": True}}
    ending = Kind({**one.section, "session": session}, lambda rng: {**one.event(rng), "last": rng.random() < _ENDS})
    alarming = Kind({**one.section, "promise": {"false_alarm_rate": _ALARMS}}, one.event)
    plain, hot, cold = _stages(one, size, ("zipf", 1.0), ("uniform", 1.0), ("uniform", 0.1))
    of_fields, of_numbers, of_ends, told = (
        _stages(kind, size, ("zipf", 1.0))[0] for kind in (fielded, numbered, ending, alarming)
    )
    sessions = size.sliced[1]
    missed = max(1.0 - max(2_000, 0.1 * sessions) / sessions, 0.1)
    outside = [sum(found[stage] for stage in _OUTSIDE) for found in (plain, of_fields, of_numbers, of_ends)]
    ended = of_ends["total"] - plain["total"]
    found = {
        "field_us": max(0.0, outside[1] - outside[0]) / 2, "number_us": max(0.0, outside[2] - outside[0]) / 3,
        "session_us": max(0.0, ended) / _ENDS, "row_read_us": max(0.0, cold["lookup"] - hot["lookup"]) / missed,
    }  # fmt: skip
    screen.print("  " + "  ".join(f"{name} {us:.2f}" for name, us in found.items()))
    sizes = {"decision_bytes": told["decisions"], "anomaly_bytes": told["anomalies"]}
    return {name: round(us, 2) for name, us in found.items()} | {name: round(n) for name, n in sizes.items()}


# --- disk and memory -------------------------------------------------------------------------------------------------


def _of_disk(rows: int, screen: Console) -> dict[str, Any]:
    """RocksDB under rows that are written over and over: five times each, in batches as checkpoints make them."""
    format_, rng = RowFormat(_SHAPE), np.random.default_rng(0)
    batch = min(1_000, rows)
    _ON_DISK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_ON_DISK) as name:
        cold, before, saved = ColdRows(Path(name) / "rows"), _written(), 0
        for _ in range(5 * rows // batch):
            values = format_.encode(_random_rows(rng, batch))
            keys = [session_key(f"session-{number:08d}") for number in rng.choice(rows, batch, replace=False).tolist()]
            cold.write(dict(zip(keys, values, strict=True)), 0, None)
            saved += sum(len(key) + len(value) for key, value in zip(keys, values, strict=True))
        cold.close()
        live = rows * (1 - np.exp(-5)) * saved / (5 * rows // batch * batch)
        space = sum(path.stat().st_size for path in Path(name).rglob("*.sst")) / live
        write = (_written() - before) / saved
    found = {"space_amplification": max(1.0, round(space, 2)), "write_amplification": max(1.0, round(write, 2))}
    found["row_object_bytes"] = _row_object_bytes(min(rows, 50_000))
    screen.print("  " + "  ".join(f"{name} {value:,.2f}" for name, value in found.items()))
    return found


def _random_rows(rng: np.random.Generator, count: int) -> SessionRows:
    rows = SessionRows.empty(count, _SHAPE)
    rows.events.fill(_SHAPE.context)
    rows.hidden[:] = rng.uniform(-1, 1, rows.hidden.shape)
    rows.context_tokens[:] = rng.integers(0, 1 << 62, rows.context_tokens.shape)
    rows.profile_keys[:], rows.profile_counts[:] = rng.integers(1, 1 << 62, rows.profile_keys.shape), 1
    return rows


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def _row_object_bytes(count: int) -> int:
    """What a store takes for a row beside its columns."""
    store = RowStore(_SHAPE, SessionRules(gap_ms=1_000, max_events=10_000))
    tracemalloc.start()
    names = [f"session-{number:08d}" for number in range(count)]
    for low in range(0, count, 1_000):
        piece = names[low : low + 1_000]
        rows = SessionRows.empty(len(piece), _SHAPE)
        rows.events.fill(1)
        store.put(piece, rows)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row = SessionRows.empty(1, _SHAPE)
    # Columns grow by doubling, so there is room for up to twice as many.
    columns = int(sum(getattr(row, f.name).nbytes for f in fields(row))) * (1 << (count - 1).bit_length())
    return max(0, round((taken - columns) / count))


def _torch_bytes() -> int:
    """What a process takes more once torch is there."""
    code = (
        "import os\nfrom pathlib import Path\n"
        "def held(): return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "import models.runtime\nbefore = held()\nimport models.torch_runtime\nprint(held() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    return int(done.stdout)


# --- workers ---------------------------------------------------------------------------------------------------------


def _of_workers(size: Size, core_us: float, screen: Console) -> dict[str, Any]:
    wide = {"model": {"hidden": 64, "context": _CONTEXTS[1]}}
    ways: dict[str, tuple[str, dict[str, Any], str, int]] = {
        "hardly a checkpoint": ("few", {}, "1m", _CONTEXTS[0]), "rows": ("many", {}, "250ms", _CONTEXTS[0]),
        "wide rows": ("many", wide, "250ms", _CONTEXTS[1]), "checkpoints": ("few", {}, "80ms", _CONTEXTS[0]),
    }  # fmt: skip
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        sources = {
            keys: Stack.make(broker.address, Path(name) / keys, keys).source for keys in ("few", "many")
        }  # fmt: skip
        for keys, sessions in (("few", _FEW), ("many", size.sessions)):
            send(broker.address, sources[keys], _events(sessions, size.records))
        for i in range(size.repeats):
            for number, (way, (keys, stream, interval, context)) in enumerate(ways.items()):
                stack = Stack.make(
                    broker.address, Path(name) / f"w{number}-{i}", f"w{number}-{i}", source=sources[keys],
                    stream=stream, state={"hot_sessions": _ROOM}, checkpoint_interval=interval,
                )  # fmt: skip
                shape = RowShape(64, context, 1, profile=ENTRIES)
                runs.append(_watch(stack, size.records, row_bytes(shape) / 1_000))
                screen.print(f"  {way}: {_said(runs[-1])}")
        found = told_apart(runs)
        found["record_us"] = max(0.0, found["record_us"] - core_us)
        found["base_bytes"] = round(np.median([one.resident for one in runs[:: len(ways)]]))
        found["repartition_us"] = _repartition_us(broker.address, Path(name), sources["few"], size)
        found |= asyncio.run(_replayed(broker.address, Path(name), size.rows))
    return {cost: round(value, 2) for cost, value in found.items()}


def _events(sessions: int, records: int) -> Any:
    made = keyed_events(1, sessions, uniform=True)
    return (next(made) for _ in range(records))


def _said(one: Run) -> str:
    return (
        f"{one.processor_us / one.records:.1f} us a record, {one.rows / one.records:.2f} rows a record, "
        f"{one.checkpoints:.0f} checkpoints"
    )


def _watch(stack: Stack, records: int, row_kb: float) -> Run:
    """A worker between the first tenth of the records and nearly the last of them."""
    with WorkerProcess(stack) as worker:
        worker.wait_started()
        processor, scored, rows, checkpoints = under_way(records, lambda: _look(stack, worker))
        resident = worker.resident()
        worker.stop()
    rows = max(0.0, rows - 2 * checkpoints)  # the partition row, and the transaction's mark
    return Run(processor * 1e6, scored, rows, rows * row_kb, checkpoints, resident)


def _look(stack: Stack, worker: WorkerProcess) -> tuple[float, float, float, float]:
    """Processor time, records scored, offsets of the changelog, checkpoints."""
    return (
        worker.processor_s(), worker.metric("offbeat_records_total"), float(_changelog_end(stack)),
        worker.metric("offbeat_checkpoint_seconds_count"),
    )  # fmt: skip


def _changelog_end(stack: Stack) -> int:
    """The ends of all partitions of the changelog together."""
    consumer = Consumer({"bootstrap.servers": stack.address, "group.id": "unit-costs", "log_level": 0})
    topic = changelog_topic(stack.settings, STREAM)
    try:
        return sum(log_bounds(consumer, topic, p)[1] for p in range(PARTITIONS))
    finally:
        consumer.close()


def told_apart(runs: list[Run]) -> dict[str, float]:
    """What a record, a row, a kilobyte and a checkpoint take: least squares, each run by its length; none below 0."""
    columns = np.array([[one.records, one.rows, one.row_kb, one.checkpoints] for one in runs])
    weight = 1 / columns[:, :1]
    wanted = np.array([[one.processor_us] for one in runs])
    kept = [0, 1, 2, 3]
    while True:  # a cost below 0 is noise: without it
        solved, *_ = np.linalg.lstsq(columns[:, kept] * weight, wanted * weight, rcond=None)
        negative = [place for place, value in zip(kept, solved[:, 0].tolist(), strict=True) if value < 0]
        if not negative:
            break
        kept = [place for place in kept if place not in negative]
    told = dict(zip(kept, solved[:, 0].tolist(), strict=True))
    names = ("record_us", "row_saved_us", "row_saved_kb_us", "checkpoint_us")
    return {name: float(told.get(place, 0.0)) for place, name in enumerate(names)}


def _repartition_us(address: str, folder: Path, source: str, size: Size) -> float:
    """What a worker takes more for each record that it first brings to an internal topic, from its start to the end."""
    took = []
    for way, session in (("as", {}), ("by", {"repartition": True})):
        stack = Stack.make(
            address, folder / f"{way}-it-is", f"{way}-it-is", source=source, state={"hot_sessions": _ROOM},
            stream={"session": {"by": "session", "gap": "1h", **session}}, checkpoint_interval="1m",
        )  # fmt: skip
        with WorkerProcess(stack) as worker:
            worker.wait_started()
            before = worker.processor_s()
            while worker.metric("offbeat_records_total") < size.records:
                time.sleep(_LOOK_S)
            took.append(worker.processor_s() - before)
            worker.stop()
    return max(0.0, (took[1] - took[0]) / size.records * 1e6)


async def _replayed(address: str, folder: Path, rows: int) -> dict[str, float]:
    """Seconds by the clock for rows read back, told apart by their width."""
    us, kb = [], []
    for context in _CONTEXTS:
        app = f"back-{context}"
        stack = Stack.make(address, folder / app, app, stream={"model": {"hidden": 64, "context": context}})
        kb.append(await asyncio.to_thread(fill, stack, rows) / 1_000)
        us.append(1e6 / await replay(stack, folder / f"{app}-rows"))
    of_kb = max(0.0, (us[1] - us[0]) / (kb[1] - kb[0]))
    return {"row_replayed_us": max(0.01, us[0] - of_kb * kb[0]), "row_replayed_kb_us": of_kb}
