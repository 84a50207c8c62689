"""Serves the linear core: each number forecast from its own last values, in the shape every core serves in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.autoregression import Autoregression
from models.errors import BundleError
from models.runtime import F32, Scores

_WITHIN = 1.645  # spreads of a normal distribution that hold nine tenths of it


class LinearRuntime:
    """Scores numbers alone: a record's surprise is, channel by channel, how far forecasts have been off of late.

    The unit is the channel's spread in training, divided by the number of channels, so that the sum over fields is the
    score. Tokens add nothing, and neither does a session's end. What "heads read" are the forecasts themselves.

    Parameters
    ----------
    weights
        As `Autoregression.to_arrays` gives them.
    fields
        Token fields, which stand before the numbers.
    numbers
        Number columns.

    Raises
    ------
    BundleError
        The weights do not fit each other, or are for other numbers.
    """

    name, resumes = "kernel", False

    def __init__(self, weights: Mapping[str, NDArray[np.float64]], fields: int, numbers: int) -> None:
        self.model = Autoregression.from_arrays(weights)
        self._fields = fields
        if self.model.channels != numbers:
            message = f"the bundle forecasts {self.model.channels} numbers, the stream has {numbers}; train it again"
            raise BundleError(message)

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says; without ids numbers have no tails."""
        channels, width = self.model.channels, self.model.lags + 1
        numbers = np.empty((len(tokens), channels), np.float32) if numbers is None else numbers
        after = np.array(hidden, np.float32, order="C")
        own = np.ascontiguousarray(after[:, : channels * width]).reshape(len(after), channels, width)
        scored = self.model.score_operations(kind, row, record, first, numbers, own)
        after[:, : channels * width] = scored.state.reshape(len(after), channels * width)
        surprise = np.zeros((len(numbers), self._fields + channels), np.float32)
        surprise[:, self._fields :] = scored.levels / np.float32(channels)
        return Scores(surprise, scored.forecasts, np.zeros(len(kind), np.float32), after)

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says: of no field, for it predicts no tokens."""
        return []

    def intervals(self, forecasts: F32) -> list[tuple[float, float, float] | None]:
        """Of each number, where nine tenths should lie and the middle, as (low, median, high); None without a forecast.

        `forecasts` are (C,), in the numbers' own units.
        """
        model = self.model
        reach = _WITHIN * np.sqrt(model.usual) * model.spread
        return [
            None if np.isnan(middle) else (float(middle - off), float(middle), float(middle + off))
            for middle, off in zip(forecasts.tolist(), reach.tolist(), strict=True)
        ]
