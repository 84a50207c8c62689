"""Numbers as a sequence model takes them that forecasts them: in spreads, the last known one for one that is missing.

Training and serving both go by these functions, so that a model is given the same by either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.autoregression import CAP, moments
from models.errors import BundleError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FURTHEST = 1e9  # spreads; further away is as far, so that a state stays finite in float32
PREFIX = "values."  # of these arrays among a bundle's weights
_PARTS = ("mean", "spread", "usual", "reach", "unit")


@dataclass(frozen=True)
class Values:
    """What is known of C numbers beside the model's weights.

    Attributes
    ----------
    mean, spread
        (C,) float64 of the values in training; spread is never 0.
    usual
        (C,) float64: mean capped squared residual, in spreads, in sessions that taught the weights nothing.
    reach
        (C,) float64: nine tenths of the residuals there were no larger, in spreads.
    unit
        Nats that a spread counts for beside the surprise of tokens; 1 where there are none.
    """

    mean: F64
    spread: F64
    usual: F64
    reach: F64
    unit: float = 1.0

    @classmethod
    def fit(cls, sessions: Sequence[NDArray[np.floating]]) -> Values:
        """Of the (T, C) numbers of each session; what only a trained model can tell is still 0."""
        mean, spread = moments(sessions)
        return cls(mean, spread, np.zeros(len(mean)), np.zeros(len(mean)))

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    def in_spreads(self, numbers: NDArray[np.floating]) -> F32:
        """(n, C) float32 of (n, C) numbers; what is not finite is missing, NaN."""
        numbers = np.asarray(numbers, np.float64)
        scaled = np.clip((numbers - self.mean) / self.spread, -FURTHEST, FURTHEST).astype(np.float32)
        return np.where(np.isfinite(numbers), scaled, np.float32(np.nan))

    def to_arrays(self) -> dict[str, F64]:
        """Named arrays, to stand among a bundle's weights."""
        return {f"{PREFIX}{name}": np.atleast_1d(np.asarray(getattr(self, name), np.float64)) for name in _PARTS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], channels: int) -> Values:
        """Inverse of `to_arrays`, of which there may be others.

        Raises
        ------
        BundleError
            An array is missing, has another shape, or holds what cannot be.
        """
        try:
            found = [np.asarray(arrays[f"{PREFIX}{name}"], np.float64) for name in _PARTS]
        except KeyError as error:
            message = f"the bundle has no weight {error.args[0]}; train it again"
            raise BundleError(message) from None
        *of_channels, unit = found
        if any(part.shape != (channels,) for part in of_channels) or unit.shape != (1,):
            message = f"the bundle forecasts other numbers than the {channels} that it names; train it again"
            raise BundleError(message)
        mean, spread, usual, reach = of_channels
        possible = all(np.isfinite(part).all() for part in found) and (spread > 0).all() and unit[0] > 0
        if not possible or (usual < 0).any() or (reach < 0).any():
            message = "the bundle holds means and spreads of numbers that cannot be; train it again"
            raise BundleError(message)
        return cls(mean, spread, usual, reach, float(unit[0]))

    def knowing(self, *, usual: F64, reach: F64, unit: float) -> Values:
        """The same with what a trained model has told."""
        return replace(self, usual=usual, reach=reach, unit=unit)


def held(values: F32) -> F32:
    """(T, C) of a session's values in their order, the last known one for one that is missing; NaN before the first."""
    if not len(values):
        return values
    latest = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))[:, None]), axis=0)
    return np.asarray(np.take_along_axis(values, latest, axis=0), np.float32)


def told(values: F32, known: F32) -> F32:
    """(..., 2C) what a model is given of (..., C) values and of what is `held` once they came.

    The values that are known, no further than CAP spreads away and 0 where nothing is known, and which are missing.
    """
    near = np.clip(np.nan_to_num(known), -CAP, CAP)
    return np.concatenate([near, np.isnan(values)], axis=-1, dtype=np.float32)
