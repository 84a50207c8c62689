"""A linear autoregressive model per channel: how far numbers have been off what their last values forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError, UnsuitableDataError
from models.kernels import autoregress
from models.spec import LAGS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SPAN = 20  # records over which residuals are averaged
CAP = 10.0  # spreads; more counts as that, so that one wild value does not outweigh a fault of many records
_RIDGE = 1e-4  # of the values' variance: lags that say the same share the weight
_LARGEST = 1e100
_RESOLUTION = 1e-6  # float32 holds seven digits, so a smaller spread is noise of the format


@dataclass(frozen=True)
class Scored:
    """What is said of n records and m operations.

    Attributes
    ----------
    scores, residuals, levels
        (n,) float64; (n, C) float32 in spreads, NaN without a forecast; (n, C) float32, how far each channel's
        forecasts have been off of late, as in training where there was none yet.
    forecasts
        (m, C) float32 that each operation met, in the values' own units; NaN where there is none.
    state
        (S, C, P + 1) float32 after them.
    """

    scores: F64
    residuals: F32
    levels: F32
    forecasts: F32
    state: F32


@dataclass(frozen=True)
class Autoregression:
    """Forecasts each channel from its own last values; the score is how far off that has been of late.

    Values are taken in units of their spread in training, less their mean. A record's residual per channel is its value
    less the forecast; its square, at most CAP squared, goes into an exponential mean per channel. The score is the mean
    over channels of that mean's root: of 20 records, how many spreads a channel usually misses its forecast by. It
    finds what jumps, trembles or swings as training never did. It fails on what goes wrong slowly, which a forecast
    from the last values follows, and on what is odd only in how channels stand to each other.

    A missing value (NaN) says nothing: the channel keeps its mean, and the value before it stands for it. A session's
    first value in a channel has no forecast; the mean begins at what was usual in training.

    Attributes
    ----------
    mean, spread
        (C,) float64 of the training values; spread is never 0.
    coefficients
        (C, P) float64: weights of the last values, the latest first.
    usual
        (C,) float64: mean capped squared residual in training.
    span
        Records of the exponential mean, whose weight for a new one is 2 / (span + 1).

    References
    ----------
    Hamilton 1994, Time Series Analysis, chapter 5 (least squares of an AR(p)); Hoerl, Kennard 1970,
    doi:10.1080/00401706.1970.10488634 (ridge); Roberts 1959, doi:10.1080/00401706.1959.10489860 (exponential means of
    residuals for detection).
    """

    mean: F64
    spread: F64
    coefficients: F64
    usual: F64
    span: int = SPAN

    @classmethod
    def fit(cls, sessions: Sequence[NDArray[np.floating]], lags: int = LAGS, span: int = SPAN) -> Autoregression:
        """Ridge regression of each channel on its own last values.

        Parameters
        ----------
        sessions
            (T, C) values of each session in order, NaN where missing.

        Raises
        ------
        UnsuitableDataError
            No session has more records than `lags`, so there is nothing to learn a forecast from.
        """
        if not any(len(s) > lags for s in sessions):
            message = (
                f"no session has more than {lags} records, so no number can be forecast from the {lags} before it; "
                "give a longer time span, or check session.gap"
            )
            raise UnsuitableDataError(message)
        mean, spread = moments(sessions)
        held = [_held((s - mean) / spread) for s in map(finite, sessions)]
        coefficients = np.stack([_ridge([(s[:, c], h[:, c]) for s, h in held], lags) for c in range(len(mean))])
        model = cls(mean, spread, coefficients, np.zeros(len(mean)), span)
        return cls(mean, spread, coefficients, model._usual(sessions), span)

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    @property
    def lags(self) -> int:
        """P."""
        return int(self.coefficients.shape[1])

    def start(self, sessions: int) -> F32:
        """(S, C, P + 1) float32: the state before any value, NaN for what is not known."""
        return np.full((sessions, self.channels, self.lags + 1), np.nan, np.float32)

    def score(
        self, row: NDArray[np.int32], first: NDArray[np.bool_], values: NDArray[np.floating], state: F32
    ) -> tuple[F64, F32, F32]:
        """Score a slice's records, each before it is learned; the same bits in any company and any slicing.

        Parameters
        ----------
        row, first
            (n,) int32 and bool: each record's session, and whether it opens that; a session's records in their order.
        values
            (n, C), NaN where missing; infinite ones count as missing.
        state
            (S, C, P + 1) float32: last values in spreads, the latest first, and the mean square. Left untouched.

        Returns
        -------
        scores
            (n,) float64, in spreads; NaN while no channel has a forecast.
        residuals
            (n, C) float32 in spreads, capped; NaN where there was no value, or no forecast of it.
        state
            (S, C, P + 1) after the slice.
        """
        kind, record = np.zeros(len(row), np.int8), np.arange(len(row), dtype=np.int32)
        scored = self.score_operations(kind, row, record, first, values, state)
        return scored.scores, scored.residuals, scored.state

    def score_operations(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        values: NDArray[np.floating], state: F32,
    ) -> Scored:  # fmt: skip
        """The same of a slice's operations: steps, late records that are not learned, and ends of sessions."""
        n, m, after = len(values), len(kind), np.array(state, np.float32, order="C")
        scored = Scored(
            np.empty(n), np.empty((n, self.channels), np.float32), np.empty((n, self.channels), np.float32),
            np.empty((m, self.channels), np.float32), after,
        )  # fmt: skip
        autoregress(
            kind, row, record, first, np.ascontiguousarray(values, np.float64), after, self.mean, self.spread,
            self.coefficients, self.usual, CAP, 2.0 / (self.span + 1.0),
            scored.scores, scored.residuals, scored.levels, scored.forecasts,
        )  # fmt: skip
        return scored

    def score_many(self, session: NDArray[np.floating]) -> F64:
        """(T,) scores of one whole session of (T, C) values."""
        n = len(session)
        row, first = np.zeros(n, np.int32), np.arange(n) == 0
        return self.score(row, first, session, self.start(1))[0]

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """The model as named arrays, for safetensors."""
        return {
            "mean": self.mean, "spread": self.spread, "coefficients": self.coefficients, "usual": self.usual,
            "span": np.array([self.span], np.float64),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Autoregression:
        """Inverse of `to_arrays`.

        Raises
        ------
        BundleError
            An array is missing, has another shape, or holds what is not finite.
        """
        try:
            mean, spread, weights, usual = (
                np.ascontiguousarray(arrays[name], np.float64) for name in ("mean", "spread", "coefficients", "usual")
            )
            span = int(arrays["span"][0])
        except (KeyError, IndexError, ValueError) as error:
            message = f"the bundle's autoregression lacks a part ({error}); train it again"
            raise BundleError(message) from None
        shapes = mean.shape == spread.shape == usual.shape == weights.shape[:1] and weights.ndim == 2
        if not (shapes and all(np.isfinite(a).all() for a in (mean, spread, weights, usual))) or (spread <= 0).any():
            message = "the bundle's autoregression holds numbers that do not fit each other; train it again"
            raise BundleError(message)
        return cls(mean, spread, weights, usual, span)

    def _usual(self, sessions: Sequence[NDArray[np.floating]]) -> F64:
        """(C,) mean capped squared residual; 0 of a channel that never had one."""
        total, count = np.zeros(self.channels), np.zeros(self.channels)
        for session in sessions:
            n = len(session)
            row, first = np.zeros(n, np.int32), np.arange(n) == 0
            residuals = self.score(row, first, session, self.start(1))[1].astype(np.float64)
            total += np.nansum(residuals**2, axis=0)
            count += np.isfinite(residuals).sum(axis=0)
        return total / np.maximum(count, 1.0)


def moments(sessions: Sequence[NDArray[np.floating]]) -> tuple[F64, F64]:
    """(C,) mean and standard deviation of the values there are, in two passes; a channel without any has 0 and 1."""
    known = [finite(s) for s in sessions]
    count = np.maximum(sum((~np.isnan(s)).sum(0) for s in known), 1)
    mean = np.asarray(sum(np.nansum(s, 0) for s in known) / count)
    spread = np.sqrt(np.asarray(sum(np.nansum((s - mean) ** 2, 0) for s in known) / count))
    # A channel that never moved in training: any move is beyond all bounds, unless it is noise of the number format.
    least = np.where(mean == 0.0, _RESOLUTION, np.abs(mean) * _RESOLUTION)
    never = ~np.any([(~np.isnan(s)).any(0) for s in known], axis=0)
    return mean, np.where(never, 1.0, np.maximum(spread, least))


def finite(session: NDArray[np.floating]) -> F64:
    """The values in float64, of which squares are finite; infinite ones are missing."""
    values = session.astype(np.float64)
    return np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), np.nan)


def _held(values: F64) -> tuple[F64, F64]:
    """The (T, C) values, and the same where the value before stands for a missing one; NaN before the first."""
    latest = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))[:, None]), axis=0)
    return values, np.take_along_axis(values, latest, axis=0)


def _ridge(sessions: list[tuple[F64, F64]], lags: int) -> F64:
    """(P,) weights of one channel's last values, from each session's (T,) values and those held where missing."""
    gram, moment, count = np.zeros((lags, lags)), np.zeros(lags), 0
    for values, held in sessions:
        if len(held) <= lags:
            continue
        before = np.lib.stride_tricks.sliding_window_view(held[:-1], lags)[:, ::-1]
        usable = ~(np.isnan(values[lags:]) | np.isnan(before[:, -1]))
        gram += before[usable].T @ before[usable]
        moment += before[usable].T @ values[lags:][usable]
        count += int(usable.sum())
    return np.asarray(np.linalg.solve(gram + _RIDGE * max(count, 1) * np.eye(lags), moment))
