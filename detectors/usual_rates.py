"""How many records are usual: by segment and hour of the day, with their spread, as a training leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.rate_kernels import Floats

HOUR_MS, DAY_MS, HOURS = 3_600_000, 86_400_000, 24
MOST_SEGMENTS = 256
WIDTHS_MS = (10_000, 60_000, 300_000, 900_000, HOUR_MS)
LEAST_EXPECTED = 20.0  # records a bucket: with fewer, half of them is no surprise
LEAST_BUCKETS = 32  # of a history, so that their spread is known
_VERSION = 1


@dataclass(frozen=True, eq=False)
class UsualRates:
    """What a partition of training had; works while each partition sees about as large a share of the stream.

    Attributes
    ----------
    bucket_ms
        Width of a bucket.
    segments
        S names, the most frequent first; None: records without one.
    counts
        (S, 24) int64: records by hour of the day, UTC.
    buckets
        (24,) int64: how many buckets these came in.
    dispersion
        (S,) float64, as `detectors.rate_kernels` has it, of counts against what is expected of them.
    by_hour
        Whether training saw two days, so that hours are told apart.
    """

    bucket_ms: int
    segments: tuple[str | None, ...]
    counts: NDArray[np.int64]
    buckets: NDArray[np.int64]
    dispersion: Floats
    by_hour: bool

    def to_json(self) -> dict[str, Any]:
        """As a bundle holds it."""
        return {
            "version": _VERSION, "bucket_ms": self.bucket_ms, "segments": list(self.segments), "by_hour": self.by_hour,
            "counts": self.counts.tolist(), "buckets": self.buckets.tolist(), "dispersion": self.dispersion.tolist(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self | None:
        """What `to_json` gave; None of another version. KeyError, ValueError: it is none."""
        if saved["version"] != _VERSION:
            return None
        counts, buckets = np.array(saved["counts"], np.int64), np.array(saved["buckets"], np.int64)
        segments, dispersion = tuple(saved["segments"]), np.array(saved["dispersion"], np.float64)
        if counts.shape != (len(segments), HOURS) or buckets.shape != (HOURS,) or dispersion.shape != (len(segments),):
            message = "rates.json has other segments or hours than it says"
            raise ValueError(message)
        return cls(saved["bucket_ms"], segments, counts, buckets, dispersion, saved["by_hour"])

    @cached_property
    def number_of(self) -> dict[str | None, int]:
        """Positions of segments."""
        return {name: s for s, name in enumerate(self.segments)}

    @cached_property
    def hourly(self) -> Floats:
        """(24, S) records a bucket; half of one more than came, for what never came may come."""
        counts, buckets = self._seen
        hourly: Floats = (counts + 0.5) / buckets[:, None]
        return hourly

    @cached_property
    def daily(self) -> Floats:
        """(S,) records a day."""
        daily: Floats = self.hourly.mean(axis=0) * (DAY_MS / self.bucket_ms)
        return daily

    @cached_property
    def _seen(self) -> tuple[Floats, Floats]:
        """(24, S) records and (24,) buckets that tell of an hour: its own, or all there are."""
        counts, buckets = self.counts.T.astype(np.float64), self.buckets.astype(np.float64)
        if self.by_hour:
            return counts, buckets
        return np.broadcast_to(counts.sum(axis=0), counts.shape), np.broadcast_to(buckets.sum(), buckets.shape)

    @cached_property
    def _spread(self) -> Floats:
        """(24, S) dispersion, and beside it how little is known of the mean: as the predictive of a gamma prior."""
        spread: Floats = self.dispersion + 1.0 / (self._seen[0] + 1.0)
        return spread

    def at(self, from_ms: int) -> tuple[Floats, Floats, Floats]:
        """(S,) lower and higher mean of a bucket, and the dispersion.

        Within an hour nobody knows whether the rate steps, as where work begins, or glides from the middle of one hour
        to the next: what is between the two is usual.
        """
        middle = (from_ms + self.bucket_ms / 2) % DAY_MS / HOUR_MS
        hour = min(int(middle), HOURS - 1)
        step, before = self.hourly[hour], int(np.floor(middle - 0.5))
        share = middle - 0.5 - before
        glide = (1.0 - share) * self.hourly[before % HOURS] + share * self.hourly[(before + 1) % HOURS]
        return np.minimum(step, glide), np.maximum(step, glide), self._spread[hour]


def bucket_of(records: int, segments: int, span_ms: int) -> int:
    """The narrowest bucket in which a segment has enough records on average; an hour where none has.

    >>> bucket_of(86_400, 1, DAY_MS), bucket_of(86_400, 9, DAY_MS), bucket_of(100, 1, DAY_MS)
    (60000, 300000, 3600000)
    """
    rate = records / max(1, segments) / max(1, span_ms)
    return next((width for width in WIDTHS_MS if rate * width >= LEAST_EXPECTED), HOUR_MS)


def fit_dispersion(counts: Sequence[Floats], expected: Sequence[Floats]) -> Floats:
    """(S,) by moments: what (n, S) counts of each partition vary beyond Poisson's around (n, S) expected ones."""
    beyond = sum(((c - e) ** 2 - e).sum(axis=0) for c, e in zip(counts, expected, strict=True))
    squares = sum((e**2).sum(axis=0) for e in expected)
    found: Floats = np.maximum(beyond / squares, 0.0)
    return found
