"""Serves a sequence model that forecasts numbers: how far off forecasts have been of late, beside the tokens' nats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.autoregression import CAP, SPAN
from models.errors import BundleError
from models.forecast_kernels import gather, hold
from models.runtime import F32, Runtime, Scores, load_runtime
from models.spec import ModelSpec
from models.values import PREFIX, Values, told


class Forecast(NamedTuple):
    """What is said of n records and m operations beside the core's own scores.

    Attributes
    ----------
    scores
        The core's; its surprise is of tokens alone, its hidden complete.
    forecasts
        (m, C) float32 in spreads, NaN where nothing is known.
    residuals, levels
        (n, C) float32 in spreads, residuals NaN without a forecast.
    """

    scores: Scores
    forecasts: F32
    residuals: F32
    levels: F32


class ForecastRuntime:
    """Scores tokens by their surprise and numbers by how far their forecasts have been off of late.

    A number's forecast is its last known value and a change that the core tells. The square of its residual, in spreads
    of training and at most CAP squared, goes into an exponential mean of 20 records; the root of that, times `unit` and
    divided by C, is its share of the record's score. So with numbers alone the score is the mean over numbers of how
    many spreads forecasts miss by, as of `models.linear.LinearRuntime`. Beside tokens a spread counts for as many nats
    as make the numbers' part vary as much as the tokens' part in training: neither drowns the other.

    What "heads read" are H numbers for the softmaxes and, behind them, C forecasts in the numbers' own units. A
    session's row holds, behind the core's state, C last values in spreads and C mean squares, NaN while not known.

    Parameters
    ----------
    weights
        As `SequenceModel.weights` gives them, and `Values.to_arrays`.
    runtime, device
        As `load_runtime` has them.

    Raises
    ------
    BundleError
        The weights do not fit the model, or each other.
    """

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, NDArray[Any]], runtime: str = "auto", device: str = "cpu"
    ) -> None:
        self.values = Values.from_arrays(weights, spec.values)
        of_core = {name: array for name, array in weights.items() if not name.startswith(PREFIX)}
        _check(spec, of_core)
        self._core: Runtime = load_runtime(spec, of_core, runtime, device)
        self.name, self.resumes, self.spec = self._core.name, False, spec
        self._weight = np.ascontiguousarray(of_core["change.weight"], np.float32)
        self._bias = np.ascontiguousarray(of_core["change.bias"], np.float32)

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says."""
        values, channels = self.values, self.values.channels
        numbers = np.full((len(tokens), channels), np.nan, np.float32) if numbers is None else numbers
        found = self.forecast(kind, row, record, first, tokens, log_gap, hidden, values.in_spreads(numbers))
        own_units = (values.mean + values.spread * found.forecasts).astype(np.float32)
        scores = found.scores
        return Scores(
            np.hstack([scores.surprise, found.levels * np.float32(values.unit / channels)]),
            np.hstack([scores.states, own_units]), scores.end_surprise, scores.hidden,
        )  # fmt: skip

    def forecast(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, values: F32,
    ) -> Forecast:  # fmt: skip
        """The same of (n, C) values in spreads, part by part."""
        channels, n, m = self.values.channels, len(values), len(kind)
        at, stop = self.spec.core_state, self.spec.state_numbers
        own = np.ascontiguousarray(hidden[:, at:stop], np.float32)
        last, squares = own[:, :channels].copy(), own[:, channels:].copy()
        known, before = np.empty((n, channels), np.float32), np.empty((m, channels), np.float32)
        hold(kind, row, record, first, values, last, known, before)
        scores = self._core.score_and_step(
            kind, row, record, first, tokens, log_gap, hidden, numbers=told(values, known)
        )  # fmt: skip
        found = Forecast(scores, np.empty_like(before), np.empty_like(known), np.empty_like(known))
        gather(
            kind, row, record, first, values, before, scores.states, self._weight, self._bias, self.values.usual, CAP,
            2.0 / (SPAN + 1.0), squares, found.forecasts, found.residuals, found.levels,
        )  # fmt: skip
        scores.hidden[:, at:stop] = np.hstack([last, squares])
        return found

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says, of what `states` hold for the softmaxes."""
        if not self.spec.sizes:
            return []
        return self._core.log_probabilities(np.ascontiguousarray(states[:, : self.spec.hidden]))

    def intervals(self, states: F32) -> list[tuple[float, float, float] | None]:
        """Of each number, where nine tenths should lie and the middle, as (low, median, high); None without a forecast.

        `states` are (H + C,), as one operation has them.
        """
        reach, largest = self.values.reach * self.values.spread, float(np.finfo(np.float32).max)
        found: list[tuple[float, float, float] | None] = []
        for middle, off in zip(states[self.spec.hidden :].tolist(), reach.tolist(), strict=True):
            low, median, high = (min(max(x, -largest), largest) for x in (middle - off, middle, middle + off))
            found.append(None if np.isnan(middle) else (low, median, high))
        return found


def _check(spec: ModelSpec, weights: Mapping[str, NDArray[Any]]) -> None:
    wanted = {"change.weight": (spec.values, spec.hidden), "change.bias": (spec.values,)}
    for name, shape in wanted.items():
        if name not in weights:
            message = f"the bundle has no weight {name}; train it again"
            raise BundleError(message)
        if weights[name].shape != shape:
            message = "the bundle's weights do not fit its vocabulary; train it again"
            raise BundleError(message)
