"""Several detectors' scores of a session as one, by a rule that holds however they depend on each other.

Each score becomes minus the logarithm of its p-value among held-back sessions; beyond their bulk it grows as an
exponential tail does, so that the strangest are still told apart. They are combined by the harmonic mean of the
p-values: one detector that is sure suffices, however many see nothing, and two that see the same count little more than
one. That mean is a p-value but for a factor of the logarithm of their number under any dependence; here the factor does
not matter, for the combined score is calibrated once more, on held-back sessions.

References
----------
Wilson 2019, "The harmonic mean p-value for combining dependent tests", PNAS 116(4); Vovk and Wang 2020, "Combining
p-values via averaging", Biometrika 107(4), doi:10.1093/biomet/asaa027.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.calibration import Calibration

F32 = NDArray[np.float32]
_BULK = 0.95  # of the scores: what lies above fits the tail


@dataclass(frozen=True)
class Scale:
    """What turns a detector's scores into nats: counting up to `join`, beyond it an exponential tail.

    Attributes
    ----------
    counted
        Calibration by counting.
    join, mass, mean
        Where the tail begins, the share of scores beyond, and how far beyond they are on average.
    """

    counted: Calibration
    join: float
    mass: float
    mean: float

    @classmethod
    def learn(cls, scores: F32) -> Scale:
        """From (n,) held-back scores without NaN."""
        ordered = np.sort(scores.astype(np.float64))
        join = float(ordered[min(len(ordered) - 1, math.ceil(_BULK * len(ordered)) - 1)])
        beyond = ordered[ordered > join] - join
        mass = (1.0 + len(beyond)) / (1.0 + len(ordered))
        # Where the scores are all alike, any other is far from them.
        mean = float(beyond.mean()) if len(beyond) else max(abs(join), 1.0) * float(np.finfo(np.float32).eps)
        return cls(Calibration.learn(scores), join, mass, mean)

    def nats(self, scores: F32) -> NDArray[np.float64]:
        """(n,) minus log p-values of (n,) scores; 0 for NaN, of which nothing is known."""
        out = np.empty(len(scores))
        _nats(scores, self.counted.p_values(scores), self.join, self.mass, self.mean, out)
        return out


@dataclass(frozen=True)
class Combined:
    """The scales of the detectors, in the order of their scores: less than 257 KB each."""

    scales: tuple[Scale, ...]

    @classmethod
    def learn(cls, scores: F32) -> Combined:
        """From (n, D) held-back scores of D detectors; NaN where one has none."""
        return cls(tuple(Scale.learn(column[~np.isnan(column)]) for column in scores.T))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Combined:
        """What `to_arrays` gave. KeyError: it is not there."""
        tails = (arrays[f"{name}.exponential"].tolist() for name in names)
        counted = (Calibration.from_arrays(arrays, name) for name in names)
        return cls(tuple(Scale(calibration, *tail) for calibration, tail in zip(counted, tails, strict=True)))

    def to_arrays(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Arrays to save, with a name for each detector."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, scale in zip(names, self.scales, strict=True):
            arrays |= scale.counted.to_arrays(name)
            arrays[f"{name}.exponential"] = np.array([scale.join, scale.mass, scale.mean])
        return arrays

    def nats(self, scores: F32) -> NDArray[np.float64]:
        """(n, D) of each detector."""
        return np.stack([scale.nats(column) for scale, column in zip(self.scales, scores.T, strict=True)], axis=1)

    def score(self, scores: F32) -> F32:
        """(n,) float32 minus the logarithm of the harmonic mean of the p-values of (n, D) scores."""
        out = np.empty(len(scores), np.float32)
        _harmonic(self.nats(scores), out)
        return out


@njit(cache=True)
def _nats(scores, p_values, join, mass, mean, out):
    """One scalar logarithm each, so no session's bits depend on its neighbours."""
    for i in range(len(scores)):
        if math.isnan(scores[i]):
            out[i] = 0.0
        elif scores[i] > join:
            out[i] = (scores[i] - join) / mean - math.log(mass)
        else:
            out[i] = -math.log(p_values[i])


@njit(cache=True)
def _harmonic(nats, out):
    for i in range(len(nats)):
        largest = nats[i].max()
        total = 0.0
        for k in range(nats.shape[1]):
            total += math.exp(nats[i, k] - largest)
        out[i] = largest + math.log(total / nats.shape[1])
