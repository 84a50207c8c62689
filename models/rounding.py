"""Weights stored as float16: half the bytes, and how much worse they predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UnsuitableDataError
from models.kernels import STEP
from models.runtime import Runtime, load_runtime, widened
from models.sequences import Sequence, Sequences
from models.spec import ModelSpec, state_size

_END = STEP + 1  # any kind that is no event
_AT_ONCE = 500  # sessions, so that wide states fit into memory


def store_weights(
    weights: Mapping[str, NDArray[np.float32]], kind: str, spec: ModelSpec, validation: Sequences
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Weights as a bundle stores them, `kind` "float32" or "float16", and for the manifest what that costs.

    Raises
    ------
    UnsuitableDataError
        A weight is beyond float16's range.
    """
    if kind == "float32":
        return dict(weights), {}
    stored = to_float16(weights)
    before, after = (_loss(widened(given), spec, validation) for given in (weights, stored))
    return stored, {"float16_loss_change": after - before}


def _loss(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec, validation: Sequences) -> float:
    """As served; where numbers are forecast, their errors too, which serving gathers over many records."""
    if not spec.values:
        return loss_of_served(load_runtime(spec, weights), spec, validation)
    from models.training import mean_loss  # a worker maps libtorch only where it must

    return mean_loss(weights, spec, validation)


def to_float16(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float16]]:
    """The nearest float16 of each weight; serving widens them again.

    Raises
    ------
    UnsuitableDataError
        A weight is beyond float16's range, 65,504.
    """
    largest = max(float(np.abs(w).max()) for w in weights.values())
    if largest > float(np.finfo(np.float16).max):
        message = f"a weight of {largest:.3g} is too large for float16; write model.weights: float32"
        raise UnsuitableDataError(message)
    return {name: w.astype(np.float16) for name, w in weights.items()}


def loss_of_served(runtime: Runtime, spec: ModelSpec, sessions: Sequences) -> float:
    """Nats per event that a runtime gives to sessions and to the ends of those that were seen to end."""
    total, events = 0.0, 0
    for part in _parts(sessions):
        lengths = np.array([len(s.log_gap) for s in part])
        first = np.zeros(int(lengths.sum()), np.bool_)
        first[np.cumsum(lengths) - lengths] = True
        # Ends stand after all events; a row's state is then that after its last.
        row = np.concatenate([np.repeat(np.arange(len(part)), lengths), np.arange(len(part))]).astype(np.int32)
        kind = np.where(np.arange(len(row)) < len(first), STEP, _END).astype(np.int8)
        width = state_size(spec.core, spec.hidden, spec.window, spec.columns)
        scores = runtime.score_and_step(
            kind, row, np.arange(len(row), dtype=np.int32), first, np.concatenate([s.tokens for s in part]),
            np.concatenate([s.log_gap for s in part]), np.zeros((len(part), width), np.float32),
        )  # fmt: skip
        ended = np.array([s.ended for s in part])
        total += float(scores.surprise.sum(dtype=np.float64))
        total += float(scores.end_surprise[len(first) :][ended].sum(dtype=np.float64))
        events += len(first)
    return total / events


def _parts(sessions: Sequences) -> Iterator[list[Sequence]]:
    for low in range(0, len(sessions), _AT_ONCE):
        yield [sessions[i] for i in range(low, min(low + _AT_ONCE, len(sessions)))]
