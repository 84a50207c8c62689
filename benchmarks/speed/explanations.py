"""What an explanation costs: each earlier event left out in turn, and what would have been normal; one core."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from detectors.calibration import Calibration
from detectors.explanation import explain_end, explain_record
from detectors.occlusion import occlude_records, occlude_session
from detectors.parts import Learned, Parts
from detectors.process import process_batch
from detectors.rows import PartitionState, RowShape, SessionRows
from features.events import Events
from features.sessions import SessionRules
from features.tokens import TokenEncoder, Vocabulary
from models.family import make_model
from models.runtime import load_runtime
from models.spec import CORES, ModelSpec

_WORDS = (64, 12, 12)
_CONTEXT, _HIDDEN = 32, 64
_LONG, _SHORT = 100, _CONTEXT  # events: the row keeps the last 32 of a record's session, and a session whole


def run(anomalies: int, screen: Console, cores: tuple[str, ...] = CORES) -> dict[str, Any]:
    """Processor milliseconds at p50 and p99 over records and over sessions, each with a full context."""
    found: dict[str, Any] = {"benchmark": "explanations", "hidden": _HIDDEN, "context": _CONTEXT}
    for core in cores:
        parts = _parts(core)
        records, sessions = _measure(parts, anomalies)
        found[core] = {"record_ms": _percentiles(records), "session_ms": _percentiles(sessions)}
        of_records, of_sessions = found[core]["record_ms"], found[core]["session_ms"]
        screen.print(
            f"  {core:12} a record {of_records['p50']:6.2f} ms, p99 {of_records['p99']:6.2f};"
            f"  a session {of_sessions['p50']:6.2f} ms, p99 {of_sessions['p99']:6.2f}"
        )
    return found


def _percentiles(took: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(took, [50, 99]).tolist()
    return {"p50": p50, "p99": p99}


def _measure(parts: Parts, anomalies: int) -> tuple[list[float], list[float]]:
    """Last records of long sessions, and sessions that the row keeps whole."""
    rng = np.random.default_rng(0)
    rows = SessionRows.empty(1, parts.shape)
    of_records, of_sessions = list[float](), list[float]()
    for number in range(anomalies + 1):
        long, _, _ = process_batch(_session(rng, number, _LONG), rows, PartitionState(0), parts)
        short, _, _ = process_batch(_session(rng, number, _SHORT), rows, PartitionState(0), parts)
        began = time.process_time()
        operation = int(long.walk.of_events[_LONG - 1])
        occluded = occlude_records(long, np.array([_LONG - 1]), rows, parts)
        explain_record(long, operation, rows, parts, occluded[_LONG - 1])
        between = time.process_time()
        explain_end(short, 0, rows, parts, occlude_session(short, 0, rows, parts))
        if number:  # the first compiles
            of_records.append((between - began) * 1e3)
            of_sessions.append((time.process_time() - between) * 1e3)
    return of_records, of_sessions


def _session(rng: np.random.Generator, number: int, n: int) -> Events:
    tokens: list[list[str | None]] = [[f"w{i}" for i in rng.integers(0, size - 3, n)] for size in _WORDS]
    times = 1_000_000 + np.cumsum(rng.integers(0, 2_000, n))
    is_end = np.arange(n) == n - 1
    offsets = number * n + np.arange(n, dtype=np.int64)
    return Events(
        np.arange(n, dtype=np.int32), offsets, times, np.zeros(n, np.int32), [f"s{number}"], tokens, is_end, [], 0,
        int(offsets[-1]) + 1, numbers=np.empty((n, 0)),
    )  # fmt: skip


def _parts(core: str) -> Parts:
    fields = ("action", "status", "service")
    vocabulary = Vocabulary(fields, tuple(tuple(f"w{i}" for i in range(size - 2)) for size in _WORDS))
    spec = ModelSpec(core, _HIDDEN, vocabulary.sizes, (), _CONTEXT)
    torch.manual_seed(0)
    model = make_model(spec)
    rng = np.random.default_rng(0)
    records, sessions = (Calibration.learn(rng.gamma(shape, 1, 4_000)) for shape in (12, 20))
    learned = Learned("1".ljust(64, "0"), vocabulary, load_runtime(spec, model.weights()), records, sessions)
    shape = RowShape(model.state_size, _CONTEXT, len(fields))
    rules = SessionRules(gap_ms=900_000, max_events=10_000)
    parts = Parts(
        "orders", "shop.orders", fields, shape, rules, 0.5, TokenEncoder(len(fields), vocabulary), learned,
        model=replace(spec, sizes=(), inputs=()),
    )  # fmt: skip
    return replace(parts, explained=1_000)
