"""What a model expects next: the likeliest tokens of each field, and of numbers where they should lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.ensemble import Ensemble
from detectors.parts import Learned, Parts
from features.time_gaps import GAP
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime
from models.runtime import F32
from models.seasonal import SeasonalRuntime

TOP = 3  # expected tokens shown per field
END = "<end>"


def expected_after(
    parts: Parts, state: NDArray[np.float32], names: Sequence[str | None] | None = None,
    heads: Sequence[F32] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The likeliest tokens, and of numbers where they should lie; of named ones those of `names`, if they are known.

    Nothing while warming up: counts are kept by hashes, which cannot be turned back. `heads` is what `heads_of` says of
    the state, where that is known already.
    """
    if (learned := parts.learned) is None:
        return {field: [] for field in parts.fields}
    if isinstance(learned.runtime, LinearRuntime | SeasonalRuntime):
        forecasts = zip(parts.number_fields, learned.runtime.intervals(state), strict=True)
        return {field: [] for field in parts.fields} | {field: _interval(where) for field, where in forecasts}
    found: dict[str, Any] = {}
    heads = heads_of(parts, state) if heads is None else heads
    for f, (field, p) in enumerate(zip(parts.fields, heads, strict=False)):
        if f < parts.shape.fields:
            top = np.argsort(-p, kind="stable")[:TOP].tolist()
            found[field] = [{"token": _text(learned, f, t), "probability": float(np.exp(p[t]))} for t in top]
            continue
        column = f - parts.shape.fields
        binning = learned.numbers.of(column, None if names is None else names[column])
        found[field] = _interval(None if binning is None else binning.interval(np.exp(p)))
    if parts.measures.gaps:  # a tail may reach below 0, where no gap is
        found[GAP] = [{where: max(gap, 0.0) for where, gap in interval.items()} for interval in found[GAP]]
    if parts.model.values and isinstance(learned.runtime, ForecastRuntime | Ensemble):
        forecasts = zip(parts.number_fields, learned.runtime.intervals(state), strict=True)
        found |= {field: _interval(where) for field, where in forecasts}
    return found


def heads_of(parts: Parts, state: F32) -> list[F32]:
    """(V_f,) log-probabilities of each field under a state; none where no sequence model serves."""
    if parts.learned is None or isinstance(parts.learned.runtime, LinearRuntime | SeasonalRuntime):
        return []
    return [head[0] for head in parts.learned.runtime.log_probabilities(state[None])]


def _interval(where: tuple[float, float, float] | None) -> list[dict[str, float]]:
    """Where a number should lie; nothing where nobody knows."""
    return [] if where is None else [dict(zip(("low", "median", "high"), where, strict=True))]


def _text(learned: Learned, field: int, token: int) -> str:
    """A head's column in words; the first field's last column is the session's end."""
    return END if token == learned.vocabulary.sizes[field] else learned.vocabulary.text(field, token)
