"""What serves a model: processor time for each event, by core, width and runtime, by how many come at once."""

from __future__ import annotations

import itertools
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from models.family import make_model
from models.runtime import Runtime, load_runtime
from models.spec import CORES, KERNELS, ModelSpec

_SESSIONS = 300  # over which a slice's events fall evenly
_SLICE = 1_000
_SIZES = (64, 12, 12)


def run(
    events: int, repeats: int, screen: Console, vocabularies: tuple[int, ...] = (64, 1_000, 10_000),
    widths: tuple[int, ...] = (32, 64, 128, 256),
) -> dict[str, Any]:  # fmt: skip
    """Median of `repeats` passes over slices of 1,000, and over single events; and by size of the first vocabulary.

    What serves one core takes turns, so that other work on the machine costs each about the same.
    """
    found: dict[str, Any] = {"benchmark": "cores", "context": 32}
    for core, hidden in itertools.product(CORES, widths):
        spec = ModelSpec(core, hidden, _SIZES)
        kinds = ("kernel", "torch") if core in KERNELS else ("torch",)
        passes = {kind: _Passes(load_runtime(spec, weights_of(spec), kind), spec) for kind in kinds}
        took: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _, kind in itertools.product(range(repeats), kinds):
            took[kind].append((passes[kind].microseconds(events, _SLICE), passes[kind].microseconds(events // 50, 1)))
        for kind in kinds:
            many, alone = (median(each) for each in zip(*took[kind], strict=True))
            found[f"{core}_{hidden}_{kind}"] = {"in_slices": many, "alone": alone}
            screen.print(
                f"  {core:12} {hidden:4} {kind:7} {many:8.2f} us/event in slices of {_SLICE:,}, {alone:8.1f} alone"
            )
    for vocabulary in vocabularies:
        spec = ModelSpec("gru", 64, (vocabulary, *_SIZES[1:]))
        passed = _Passes(load_runtime(spec, weights_of(spec), "kernel"), spec)
        count = events * 64 // (vocabulary + 64)
        cost = median(passed.microseconds(count, _SLICE) for _ in range(repeats))
        found[f"kernel_vocabulary_{vocabulary}"] = cost
        screen.print(f"  gru kernel, vocabulary {vocabulary:6,}: {cost:8.2f} us/event")
    return found


def weights_of(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    torch.manual_seed(0)
    return make_model(spec).weights()


class _Passes:
    """Passes over made-up events of sessions that are all longer than the context."""

    def __init__(self, runtime: Runtime, spec: ModelSpec) -> None:
        self._runtime, self._spec = runtime, spec
        self._hidden = np.random.default_rng(0).normal(0, 1, (_SESSIONS, spec.core_state)).astype(np.float32)
        if spec.core == "transformer":  # whose state holds ids: windows are full, of the first of them
            self._hidden[:, spec.hidden], self._hidden[:, spec.hidden + 1 :] = spec.window, 0
        self.microseconds(1, 1)  # compiles

    def microseconds(self, events: int, size: int) -> float:
        """Processor time for each event, in slices of `size`."""
        rng = np.random.default_rng(0)
        slices = max(3, events // size)
        tokens = np.stack([rng.integers(0, v, (slices, size)) for v in self._spec.sizes], -1).astype(np.int32)
        row = rng.integers(0, _SESSIONS, (slices, size)).astype(np.int32)
        kind, record, gaps = np.zeros(size, np.int8), np.arange(size, dtype=np.int32), np.ones(size, np.float32)
        old = np.zeros(size, np.bool_)
        began = time.process_time()
        for at in range(slices):
            mine = (row[at], self._hidden) if size > 1 else (record, self._hidden[row[at]])
            self._runtime.score_and_step(kind, mine[0], record, old, tokens[at], gaps, mine[1])
        return (time.process_time() - began) / (slices * size) * 1e6


def microseconds(runtime: Runtime, spec: ModelSpec, events: int, size: int, repeats: int) -> float:
    """Processor time of an event, in slices of so many; the median of passes."""
    passes = _Passes(runtime, spec)
    return median(passes.microseconds(events, size) for _ in range(repeats))
