"""Calibration: how often normal data looks as strange as this score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.tail import Tail

_EXACT, _BULK = 8_192, 2_048  # scores kept one by one at the top, and quantiles kept below them
# Expected alarms among the held-back scores from which on their quantile keeps a promise to within a factor of about
# 2.5, nine times of ten. With a tail one will do, though not as well (docs/adr/0025).
_LEAST_ALARMS, _LEAST_ALARMS_WITH_TAIL = 3, 1


@dataclass(frozen=True)
class Calibration:
    """Scores of held-back normal data, thinned below the top, and the p-values they give: less than 256 KB.

    The p-value of a score is (1 + how many held-back scores reach it) / (1 + how many there are): valid whatever the
    scores' distribution while normal data stays as it was, and never 0. Where fewer than 15 reach it, that says
    little, and a tail fitted on the scores below goes on in its place, if the scores bear one out; if not, counting
    goes on, and no p-value is below 1 / (1 + n).

    Attributes
    ----------
    levels
        (k,) float32, ascending: the largest scores one by one, below them quantiles.
    reaching, above
        (k,) int64: how many held-back scores are at least, and more than, each level.
    count
        n, how many scores were held back.
    tail
        What lies above the 15th largest score; None where none can be trusted.

    References
    ----------
    Vovk, Gammerman, Shafer 2005, Algorithmic Learning in a Random World; Bates et al. 2023, arXiv:2104.08279.
    """

    levels: NDArray[np.float32]
    reaching: NDArray[np.int64]
    above: NDArray[np.int64]
    count: int
    tail: Tail | None = None

    @classmethod
    def learn(cls, scores: ArrayLike) -> Calibration:
        """Sort and thin the held-back scores, and fit a tail; NaN is not allowed among them.

        They are given in the order they happened, for a tail is told from a burst by that.
        """
        happened = np.asarray(scores, np.float32)
        ordered = np.sort(happened)
        n = len(ordered)
        bulk = np.linspace(0, max(0, n - _EXACT), _BULK, endpoint=False).astype(np.int64)
        levels = np.unique(np.concatenate([ordered[bulk] if n else ordered, ordered[max(0, n - _EXACT) :]]))
        reaching = n - np.searchsorted(ordered, levels, side="left")
        above = n - np.searchsorted(ordered, levels, side="right")
        return cls(levels, reaching.astype(np.int64), above.astype(np.int64), n, Tail.fit(happened))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Calibration:
        """What `to_arrays` gave; without a tail what was saved before there were any. KeyError: it is not there."""
        levels, reaching, above, count = (arrays[f"{name}.{part}"] for part in ("levels", "reaching", "above", "count"))
        tail = arrays.get(f"{name}.tail")
        return cls(levels, reaching, above, int(count[0]), None if tail is None else Tail(*tail.tolist()))

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Arrays to save, their names beginning with `name`."""
        arrays: dict[str, NDArray[Any]] = {
            f"{name}.levels": self.levels, f"{name}.reaching": self.reaching, f"{name}.above": self.above,
            f"{name}.count": np.array([self.count], np.int64),
        }  # fmt: skip
        return arrays if self.tail is None else arrays | {f"{name}.tail": np.array(astuple(self.tail), np.float64)}

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """(k + 1,) levels, ended by infinity; how many scores reach each; how many are above the level below each."""
        levels, reaching = np.append(self.levels, np.float32(np.inf)), np.append(self.reaching, 0)
        return levels, reaching, np.concatenate([[self.count], self.above])

    @property
    def smallest_p_value(self) -> float:
        """The least p-value that this much data can vouch for; what a tail gives below is a guess."""
        return min(1.0, (_LEAST_ALARMS if self.tail is None else _LEAST_ALARMS_WITH_TAIL) / (1.0 + self.count))

    def supports(self, rate: float) -> bool:
        """Whether a promise of this rate can be kept."""
        return rate >= self.smallest_p_value

    def doubt(
        self, rate: float, what: str, share: float, setting: str = "promise.false_alarm_rate"
    ) -> str | None:  # fmt: skip
        """A sentence where a promise asks for more than this can give; None where it does not.

        Parameters
        ----------
        what
            What was scored, in the plural.
        share
            Of a history's scores that are held back, to say how many would do.
        setting
            What may be raised instead.
        """
        if self.supports(rate):
            return None
        begins = f"{self.count} {what} were held back for calibration, "
        alarms = _LEAST_ALARMS if self.tail is None else _LEAST_ALARMS_WITH_TAIL
        enough = int(alarms / (rate * share))
        if self.tail is None and rate < 1.0 / (1.0 + self.count):
            follows = (
                f"so no {what[:-1]} can reach a p-value below {1 / (1 + self.count):.2g}: with the promise of {rate:g} "
                "none will ever be an anomaly"
            )
        else:
            follows = (
                f"which vouch for p-values down to {self.smallest_p_value:.2g}: the promise of {rate:g} may be missed "
                "several times over"
            )
        return f"{begins}{follows}. Train on about {enough} {what}, or raise {setting}"

    def p_values(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) float64 in (0, 1] of (n,) scores, never rising with them; NaN stays NaN.

        Between two levels all scores above the lower one are counted: exact at the top, rounded up in the bulk.

        >>> Calibration.learn([1.0, 2.0, 3.0]).p_values(np.array([0.5, 2.0, 2.5, 9.0], np.float32)).tolist()
        [1.0, 0.75, 0.5, 0.25]
        """
        at = np.searchsorted(self.levels, scores, side="left")
        levels, reaching, below = self._steps
        counted = np.where(levels[at] == scores, reaching[at], below[at])
        p_values = np.where(np.isnan(scores), np.nan, (1.0 + counted) / (1.0 + self.count))
        if self.tail is not None:
            # One by one: numpy's own exp and log may give a score other bits in another array.
            for i in np.flatnonzero(scores > self.tail.join).tolist():
                p_values[i] = self.tail.p_value(float(scores[i]))
        return p_values
