"""What a trained model's forecasts are usually off by: measured on sessions that taught the weights nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.forecast import Forecast, ForecastRuntime
from models.kernels import STEP
from models.runtime import Scores, widened
from models.sequences import Sequences
from models.spec import ModelSpec
from models.values import Values

F64 = NDArray[np.float64]
MOST_EVENTS = 100_000
_AT_ONCE = 500  # sessions
_WITHIN = 0.9


def with_values(
    weights: Mapping[str, NDArray[Any]], spec: ModelSpec, values: Values, sessions: Sequences
) -> dict[str, NDArray[Any]]:
    """A model's weights as they are stored, and what they say of sessions that taught them nothing.

    Parameters
    ----------
    values
        That were given in training: mean and spread.
    """
    found = _met(ForecastRuntime(spec, widened({**weights, **values.to_arrays()})), sessions)
    residuals = found.residuals.astype(np.float64)
    counts = np.isfinite(residuals).sum(0)
    usual = np.nansum(residuals**2, axis=0) / np.maximum(counts, 1)
    reach = np.array([_reach(column) for column in np.abs(residuals).T])
    values = values.knowing(usual=usual, reach=reach, unit=1.0)
    if spec.sizes:
        again = _met(ForecastRuntime(spec, widened({**weights, **values.to_arrays()})), sessions)
        unit = _ratio(again.scores.surprise.sum(1, dtype=np.float64), again.levels.mean(1, dtype=np.float64))
        values = values.knowing(usual=usual, reach=reach, unit=unit)
    return {**weights, **values.to_arrays()}


def _reach(off: F64) -> float:
    known = off[np.isfinite(off)]
    return float(np.quantile(known, _WITHIN)) if len(known) else 0.0


def _ratio(tokens: F64, numbers: F64) -> float:
    """How much more the one varies than the other; 1 where one of them does not."""
    one, other = float(tokens.std()), float(numbers.std())
    return one / other if one > 0 and other > 0 else 1.0


def _met(runtime: ForecastRuntime, sessions: Sequences) -> Forecast:
    """What a runtime says of the first sessions' events, of which there are MOST_EVENTS or few more."""
    found: list[Forecast] = []
    low, seen = 0, 0
    while low < len(sessions) and seen < MOST_EVENTS:
        high = min(low + _AT_ONCE, len(sessions))
        part, lengths = slice(int(sessions.starts[low]), int(sessions.starts[high])), sessions.lengths[low:high]
        events = int(lengths.sum())
        first = np.zeros(events, np.bool_)
        first[np.cumsum(lengths) - lengths] = True
        assert sessions.values is not None
        found.append(runtime.forecast(
            np.full(events, STEP, np.int8), np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            np.arange(events, dtype=np.int32), first, np.array(sessions.tokens[part]),
            np.array(sessions.log_gap[part]), np.zeros((len(lengths), runtime.spec.state_numbers), np.float32),
            np.array(sessions.values[part]),
        ))  # fmt: skip
        low, seen = high, seen + events
    scores, forecasts, residuals, levels = zip(*found, strict=True)
    surprise = np.concatenate([s.surprise for s in scores])
    nothing = np.empty((0, 0), np.float32)
    return Forecast(
        Scores(surprise, nothing, nothing, nothing), np.concatenate(forecasts), np.concatenate(residuals),
        np.concatenate(levels),
    )  # fmt: skip
