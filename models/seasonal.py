"""Serves the seasonal core: each number judged by its own past alone, which the session's row keeps in short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.runtime import F32, Scores
from models.seasonal_kernels import NUMBERS, judge_series


class SeasonalRuntime:
    """Scores numbers alone: a number's share is how many days lie between values as strange, by its session's own past.

    Four signals are held against what each usually is, by a mean and a deviation over the last 6,400 values: how far
    the value is from those at this time of day (within an hour or so, two weeks back, in their deviations); how far
    from the value before; how far the mean of six is from that of the last 300; and the value itself. Of the logarithms
    of their normal tails, each at most 18 nats, the root of the mean square is taken: one signal alone may tell, and
    several tell more. Times how many values come in a day this is a rate, so slow and fast series are alike. No p-value
    is claimed for it: it counts like four weeks of counting how many half days were as bad, and what was counted
    corrects it. So a series that often jumps is not alarmed for jumping. The score is log (1 + days between two such);
    of C numbers the mean.

    It needs no training. A session's first three half days score 0, for most there seems strange; it judges best after
    two weeks. It fails on what a series has always done, on a number that stands still where it often does, on what is
    odd only in how numbers stand to each other, and where values come much faster than each second: 18 nats are then
    not rare.

    What "heads read" are, for each number, the ends of where it should have been.

    Parameters
    ----------
    weights
        As `seasonal_weights` gives them.
    fields
        Token fields, which stand before the numbers and add nothing.
    numbers
        Number columns.

    Raises
    ------
    BundleError
        The bundle is for other numbers, or lacks what it should say.

    References
    ----------
    Lavin and Ahmad 2015, arXiv:1510.03336 (a short mean against a long history, and normal tails); Gelman et al. 2013,
    Bayesian Data Analysis, section 2.6 (rates from a gamma prior and counts).
    """

    name, resumes = "kernel", False

    def __init__(self, weights: Mapping[str, NDArray[Any]], fields: int, numbers: int) -> None:
        try:
            channels, self._rest_s = int(weights["channels"][0]), float(weights["refractory_s"][0])
        except (KeyError, IndexError):
            message = "the bundle of a seasonal core lacks what it should say; train it again"
            raise BundleError(message) from None
        if channels != numbers:
            message = f"the bundle judges {channels} numbers, the stream has {numbers}; train it again"
            raise BundleError(message)
        self.channels, self.width, self._fields = channels, channels * NUMBERS, fields

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says; without times all is of one moment."""
        n, width = len(tokens), self.width
        values = np.full((n, self.channels), np.nan, np.float32) if numbers is None else numbers
        times = np.zeros(n, np.int64) if time_ms is None else time_ms
        after = np.array(hidden, np.float32, order="C")
        own = np.ascontiguousarray(after[:, :width]).reshape(len(after), self.channels, NUMBERS)
        scores = np.empty((n, self.channels), np.float32)
        bands = np.empty((len(kind), 2, self.channels), np.float32)
        judge_series(
            kind, row, record, first, np.ascontiguousarray(values, np.float32), times, _seconds(log_gap),
            self._rest_s, own, scores, bands,
        )  # fmt: skip
        after[:, :width] = own.reshape(len(after), width)
        surprise = np.zeros((n, self._fields + self.channels), np.float32)
        surprise[:, self._fields :] = scores / np.float32(self.channels)
        return Scores(surprise, bands.reshape(len(kind), 2 * self.channels), np.zeros(len(kind), np.float32), after)

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says: of no field, for it predicts no tokens."""
        return []

    def intervals(self, bands: F32) -> list[tuple[float, float, float] | None]:
        """Of each number, between what nine tenths should lie and the middle, as (low, median, high); None: not known.

        By the signal that finds the value strangest: one that lies within its day's usual range may jump. `bands` are
        (2C,), as one operation has them.
        """
        ends = bands.astype(np.float64).reshape(2, self.channels).T
        return [None if np.isnan(low) else (low, (low + high) / 2, high) for low, high in ends.tolist()]


def seasonal_weights(channels: int, refractory_ms: int) -> dict[str, NDArray[np.float64]]:
    """What a bundle holds of it: the config's, for it learns nothing."""
    return {"channels": np.array([channels], np.float64), "refractory_s": np.array([refractory_ms / 1_000.0])}


def _seconds(log_gap: F32) -> NDArray[np.float64]:
    """(n,) of (n,) log (1 + seconds)."""
    return np.array([np.expm1(gap) for gap in log_gap.astype(np.float64).tolist()], np.float64)
