"""ADWIN: a window over a series that grows while its mean stays, and drops its old part where the mean has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_BUCKETS = 5  # of one size
_CLOCK = 32  # values between two looks
_LEAST_WIDTH = 10  # no look before the window has more
_LEAST_PART = 5  # values on either side of a cut


class Bucket(NamedTuple):
    """How many values, their sum, and the sum of their squared distances from their mean."""

    size: int
    total: float
    squares: float

    def joined(self, other: Bucket) -> Bucket:
        """Both as one."""
        if not self.size:
            return other
        apart = self.total / self.size - other.total / other.size
        size = self.size + other.size
        squares = self.squares + other.squares + apart * apart * self.size * other.size / size
        return Bucket(size, self.total + other.total, squares)


_NOTHING = Bucket(0, 0.0, 0.0)


@dataclass(frozen=True)
class Adwin:
    """The window as buckets of 1, 2, 4, ... values, at most `MAX_BUCKETS` of each, the oldest and largest first.

    So its memory grows with the logarithm of its width: 5 x 50 buckets hold more values than a stream ever has. At
    every 32nd value all cuts between buckets are tried. Where the means on both sides differ by more than chance
    allows, with `delta` for the chance of a false alarm, the oldest bucket goes, and it is tried again. It fails where
    values leave [0, 1], for the bound is made for these, and where the mean changes with the hour of the day: it takes
    each morning for a change.

    Attributes
    ----------
    buckets
        Oldest first; sizes never rise.
    seen
        Values ever given.
    has_changed
        Whether the last values given cut the window.

    References
    ----------
    Bifet and Gavalda 2007, doi:10.1137/1.9781611972771.42, ADWIN2 with the bound of its section 3.1. How often it looks
    and the least sizes are those of river's `drift.ADWIN`, to which a test holds it.
    """

    buckets: tuple[Bucket, ...] = ()
    seen: int = 0
    has_changed: bool = False
    delta: float = 0.002

    @property
    def window(self) -> Bucket:
        """All values of the window as one bucket."""
        whole = _NOTHING
        for bucket in self.buckets:
            whole = whole.joined(bucket)
        return whole

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(bucket.size for bucket in self.buckets)

    @property
    def mean(self) -> float:
        """Of the window; 0 where it is empty."""
        whole = self.window
        return whole.total / whole.size if whole.size else 0.0

    def update_one(self, value: float) -> Adwin:
        """Take in a value, unitless and in [0, 1]."""
        buckets = _merged([*self.buckets, Bucket(1, value, 0.0)])
        seen, has_changed = self.seen + 1, False
        if seen % _CLOCK == 0 and sum(bucket.size for bucket in buckets) > _LEAST_WIDTH:
            while self._is_cut(buckets):
                buckets, has_changed = buckets[1:], True
        return replace(self, buckets=tuple(buckets), seen=seen, has_changed=has_changed)

    def _is_cut(self, buckets: list[Bucket]) -> bool:
        """Whether the means on both sides of any cut differ too much."""
        whole = _NOTHING
        for bucket in buckets:
            whole = whole.joined(bucket)
        if whole.size <= _LEAST_WIDTH:
            return False
        variance, doubt = whole.squares / whole.size, log(2.0 * log(whole.size) / self.delta)
        size, total = 0, 0.0
        for bucket in buckets:
            size, total = size + bucket.size, total + bucket.total
            others = whole.size - size
            if others < _LEAST_PART:
                return False
            if size < _LEAST_PART:
                continue
            inverse = 1.0 / (size - _LEAST_PART + 1) + 1.0 / (others - _LEAST_PART + 1)
            bound = sqrt(2.0 * inverse * variance * doubt) + 2.0 / 3.0 * doubt * inverse
            if abs(total / size - (whole.total - total) / others) > bound:
                return True
        return False

    def to_array(self) -> NDArray[np.float64]:
        """(2 + 3 B,) float64: all there is to save."""
        parts = [part for bucket in self.buckets for part in bucket]
        return np.array([self.seen, self.has_changed, *parts], np.float64)

    def restored(self, saved: NDArray[np.float64]) -> Adwin:
        """The same with what `to_array` gave."""
        seen, has_changed, *parts = saved.tolist()
        of = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        buckets = tuple(Bucket(int(size), total, squares) for size, total, squares in of)
        return replace(self, buckets=buckets, seen=int(seen), has_changed=bool(has_changed))


def _merged(buckets: list[Bucket]) -> list[Bucket]:
    """The two oldest of a size as one of twice that, where there are too many of it; and so on upwards."""
    end, size = len(buckets), 1
    while True:
        first = end
        while first and buckets[first - 1].size == size:
            first -= 1
        if end - first <= MAX_BUCKETS:
            return buckets
        buckets[first : first + 2] = [buckets[first].joined(buckets[first + 1])]
        end, size = first + 1, 2 * size
