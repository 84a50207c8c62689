"""What each stage of a record's way costs, one core, without a broker: the product's own functions over seeded slices.

Decoding, intake (order, sessions, hashes, ids), looking rows up, scoring by the core, calibrating, the rest of judging
(profiles, novelty, what is watched), telling, encoding changed rows, writing them to RocksDB. Slices of 1,000; a
checkpoint after each eighth, or earlier where so many rows have changed that one is due. With 10 % hot a tenth of the
sessions has room in memory, and all are on disk.

Intake and calibration are pure, so they run once more, on the same inputs, and are taken from what judging took.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.slice_workloads import (
    KEYS,
    KINDS,
    STREAM,
    Keys,
    Kind,
    Record,
    learn,
    one_of_each,
    records_of,
    sliced,
)
from detectors.intake import take_in
from detectors.parts import Learned, Parts
from detectors.promise_keeper import keep
from detectors.rows import PartitionState, SessionRows
from detectors.segments import segment_p_values
from features.events import Events
from features.measures import measure
from features.sessions import walk_sessions
from models.runtime import Runtime, Scores
from pipeline.budgets import most_changed
from pipeline.cold_rows import ColdRows
from pipeline.outputs import Emitter, Output, Place
from pipeline.serving import make_live_decoder, make_parts
from pipeline.settings import Settings
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore, Snapshot

STAGES = ("decode", "intake", "lookup", "score", "calibrate", "judge", "emit", "encode", "write")
_SLICES = 8  # between two checkpoints: 250 ms at 32,000 records/s
_PIECE = 2_000  # as in pipeline/partition.py
_SAMPLE = 0.01


class Stopwatch:
    """Processor time of this process by stage; RocksDB's own threads count for whichever stage runs beside them."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        """Count what is done within for a stage."""
        began = time.process_time()
        yield
        self.spent[stage] += time.process_time() - began

    def begin(self) -> None:
        """Forget what was spent so far."""
        self.spent = dict.fromkeys(STAGES, 0.0)


class _TimedStore(RowStore):
    """A store whose work is timed."""

    watch: Stopwatch

    def make_room(self, names: Sequence[str]) -> bool:
        with self.watch.lap("lookup"):
            return super().make_room(names)

    def take(self, names: Sequence[str]) -> SessionRows:
        with self.watch.lap("lookup"):
            return super().take(names)

    def put(self, names: Sequence[str], rows: SessionRows) -> None:
        with self.watch.lap("lookup"):
            super().put(names, rows)

    def snapshot(self) -> Snapshot:
        with self.watch.lap("encode"):
            return super().snapshot()


class _TimedRuntime:
    """A runtime whose scoring is timed (`models.runtime.Runtime`)."""

    def __init__(self, inner: Runtime, watch: Stopwatch) -> None:
        self.name, self.resumes = inner.name, inner.resumes
        self.inner, self.watch = inner, watch

    def score_and_step(self, *given: Any, **named: Any) -> Scores:
        with self.watch.lap("score"):
            return self.inner.score_and_step(*given, **named)

    def log_probabilities(self, states: Any) -> list[Any]:
        return self.inner.log_probabilities(states)


def run(
    records: int, sessions: int, repeats: int, screen: Console, *, kinds: Sequence[str] = tuple(KINDS),
    keys: Sequence[Keys] = KEYS, hot: Sequence[float] = (1.0, 0.1),
) -> dict[str, Any]:  # fmt: skip
    """Microseconds a record by workload and stage: the median of `repeats` passes, each over new records."""
    found: dict[str, Any] = {"benchmark": "stages", "records": records, "sessions": sessions, "repeats": repeats}
    for name in kinds:
        with tempfile.TemporaryDirectory() as folder:
            settings, learned = learn(KINDS[name], Path(folder))
            for of_keys in keys:
                for share in hot:
                    about = f"{name}, {of_keys}, {share:.0%} hot"
                    path = Line(settings, learned, Path(folder) / about, max(2_000, int(share * sessions)))
                    found[about] = passes(path, KINDS[name], records, sessions, of_keys, repeats)
                    path.close()
                    screen.print(f"  {about:36} " + "  ".join(f"{k} {v:.2f}" for k, v in found[about].items()))
    return found


def passes(line: Line, kind: Kind, records: int, sessions: int, keys: Keys, repeats: int) -> dict[str, float]:
    """Medians by stage, and their sum; every session is open before, and the first pass warms up."""
    line.run(one_of_each(kind, sessions))
    took: list[dict[str, float]] = []
    for number in range(repeats + 1):
        made = records_of(kind, number, records, sessions, keys, line.state.next_offset)
        line.watch.begin()
        line.run(made)
        took.append({stage: spent / records * 1e6 for stage, spent in line.watch.spent.items()})
    medians = {stage: median(one[stage] for one in took[1:]) for stage in STAGES}
    return medians | {"total": median(sum(one.values()) for one in took[1:])}


class Line:
    """One partition's way from bytes to outputs and saved rows, as `pipeline/partition.py` goes it, without Kafka.

    Parameters
    ----------
    capacity
        Rows in memory.
    """

    def __init__(self, settings: Settings, learned: Learned, folder: Path, capacity: int) -> None:
        self.watch, self.state = Stopwatch(), PartitionState(0)
        self.told: dict[str, list[int]] = defaultdict(list)  # bytes of each message, by topic
        timed = replace(learned, model=_TimedRuntime(learned.runtime, self.watch))
        self._decoder = make_live_decoder(settings, STREAM, learned)
        self._parts: Parts = make_parts(settings, STREAM, timed)
        self._emitter = Emitter(self._parts, Place("t", 0), _SAMPLE)
        self._cold = ColdRows(folder)
        self._store = _TimedStore(self._parts.shape, self._parts.rules, capacity, self._cold)
        self._store.watch = self.watch
        self._most, self._slices = most_changed(capacity), 0
        self._piece = max(1, min(_PIECE, capacity // 4))

    def run(self, records: list[Record]) -> None:
        """Take all of them through, and save."""
        for slice_ in sliced(records):
            with self.watch.lap("decode"):
                events = self._decoder.decode(slice_, check_key=True)
            for piece in events.pieces(self._piece):
                self._judge(piece, slice_)
            self._slices += 1
            if self._slices >= _SLICES or self._store.changed >= self._most:
                self._checkpoint()
        self._checkpoint()

    def _judge(self, events: Events, records: list[Record]) -> None:
        before, (done, inner) = self.state, self._process(events)
        self.watch.spent["judge"] -= inner + self._once_more(done, before)
        self.state = done.state
        with self.watch.lap("emit"):
            outputs = self._emitter.outputs(done, 0, records)
        for output in outputs:
            self.told[output.topic].append(_bytes_of(output))

    def _process(self, events: Events) -> tuple[Processed, float]:
        """A slice's verdicts, and how much of the time was the store's and the core's."""
        while True:
            before = self.watch.spent["lookup"] + self.watch.spent["score"]
            with self.watch.lap("judge"):
                done = process_slice(self._store, events, self.state, self._parts, limit=self._piece)
            inner = self.watch.spent["lookup"] + self.watch.spent["score"] - before
            if done is not None:
                return done, inner
            self.watch.spent["judge"] -= inner
            self._checkpoint()  # only saved rows make room

    def _once_more(self, done: Processed, before: PartitionState) -> float:
        """Intake and calibration on the same inputs; seconds that they took."""
        earlier = self.watch.spent["intake"] + self.watch.spent["calibrate"]
        parts, verdicts, learned = self._parts, done.verdicts, self._parts.learned
        assert learned is not None, "there is a bundle"
        with self.watch.lap("intake"):
            intake = take_in(replace(done.came, sessions=done.names), done.rows, before, parts)
            events = intake.ordered.events
            walk = walk_sessions(intake.ordered, done.rows.clocks, parts.rules, close_all=False)
            parts.encoder.hashes(events.tokens, len(events))
            measures, *_ = measure(events, walk, done.rows.counter_value, done.rows.counter_ms, parts.measures)
            ids = parts.ids(events, measures)
            parts.among(events, ids)
            parts.tails(events, measures, ids)
        with self.watch.lap("calibrate"):
            p_value = segment_p_values(verdicts.score, events.segments, learned.records, learned.segment_records)
            keep(p_value, verdicts.ends.calibrated, walk, verdicts.ends.last_offset, events, before, parts)
        return self.watch.spent["intake"] + self.watch.spent["calibrate"] - earlier

    def _checkpoint(self) -> None:
        snapshot = self._store.snapshot()
        self._slices = 0
        with self.watch.lap("write"):
            self._cold.write(snapshot.rows, self.state.next_offset, 0, snapshot.timers, snapshot.void_timers)
            self._store.settle()

    def close(self) -> None:
        """Let go of RocksDB."""
        self._cold.close()


def _bytes_of(output: Output) -> int:
    headers = sum(len(name) + len(value) for name, value in output.headers)
    return len(output.key or b"") + len(output.value) + headers
