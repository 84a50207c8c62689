"""What serves a model: processor time for each event, by core and runtime, by how many come at once."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from models.family import make_model
from models.runtime import Runtime, load_runtime
from models.spec import CORES, KERNELS, ModelSpec, state_size

_SESSIONS = 300  # over which a slice's events fall evenly
_SLICE = 1_000
_SIZES = (64, 12, 12)


def run(
    events: int, repeats: int, screen: Console, vocabularies: tuple[int, ...] = (64, 1_000, 10_000)
) -> dict[str, Any]:
    """Median of `repeats` passes over slices of 1,000, and over single events; and by size of the first vocabulary."""
    found: dict[str, Any] = {"benchmark": "cores", "hidden": 64, "context": 32}
    for core in CORES:
        for kind in ("kernel", "torch") if core in KERNELS else ("torch",):
            spec = ModelSpec(core, 64, _SIZES)
            runtime = load_runtime(spec, weights_of(spec), kind)
            many, one = (
                microseconds(runtime, spec, events // share, size, repeats) for share, size in ((1, _SLICE), (50, 1))
            )
            found[f"{core}_{kind}"] = {"in_slices": many, "alone": one}
            screen.print(f"  {core:12} {kind:7} {many:8.2f} us/event in slices of {_SLICE:,}, {one:8.1f} alone")
    for vocabulary in vocabularies:
        spec = ModelSpec("gru", 64, (vocabulary, *_SIZES[1:]))
        runtime = load_runtime(spec, weights_of(spec), "kernel")
        cost = microseconds(runtime, spec, events * 64 // (vocabulary + 64), _SLICE, repeats)
        found[f"kernel_vocabulary_{vocabulary}"] = cost
        screen.print(f"  gru kernel, vocabulary {vocabulary:6,}: {cost:8.2f} us/event")
    return found


def weights_of(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Of an untrained model: speed does not depend on what was learned."""
    torch.manual_seed(0)
    return make_model(spec).weights()


def microseconds(runtime: Runtime, spec: ModelSpec, events: int, size: int, repeats: int) -> float:
    """Processor time of an event, in slices of so many; the median of passes."""
    rng = np.random.default_rng(0)
    slices = max(3, events // size)
    tokens = np.stack([rng.integers(0, v, (slices, size)) for v in spec.sizes], -1).astype(np.int32)
    row = rng.integers(0, _SESSIONS, (slices, size)).astype(np.int32)
    kind, record, gaps = np.zeros(size, np.int8), np.arange(size, dtype=np.int32), np.ones(size, np.float32)
    old = np.zeros(size, np.bool_)
    width = state_size(spec.core, spec.hidden, spec.window, spec.columns)
    hidden = rng.normal(0, 1, (_SESSIONS, width)).astype(np.float32)
    if spec.core == "transformer":  # whose state holds ids: windows are full, of the first of them
        hidden[:, spec.hidden], hidden[:, spec.hidden + 1 :] = spec.window, 0
    runtime.score_and_step(kind, row[0], record, old, tokens[0], gaps, hidden)  # compiles
    took = []
    for _ in range(repeats):
        began = time.process_time()
        for at in range(slices):
            mine = (row[at], hidden) if size > 1 else (record, hidden[row[at]])
            runtime.score_and_step(kind, mine[0], record, old, tokens[at], gaps, mine[1])
        took.append(time.process_time() - began)
    return median(took) / (slices * size) * 1e6
