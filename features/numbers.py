"""Numbers to ids: bins of equal mass with a tail at either end, so that a softmax over them is a density.

What training learns of a number is where its bins lie and how its tails fall off. A model then predicts an id, as it
does for a token, and a value in a tail adds what its distance says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNKNOWN, MISSING, LOW = 0, 1, 2  # ids; the bins follow, and the high tail is the last
BINS = 32
MAX_NAMES = 1_000  # of one number field; the others' numbers are unknown
_DAMAGED = "the bins of numbers are damaged"
Names = Sequence[Sequence[str | None] | None]  # for each column of numbers the names of its n numbers, or None
LARGEST = 1e300  # numbers beyond are taken for this one, so that differences and quotients stay finite

_TAIL, _LARGEST_TAIL, _TAIL_VALUES = 0.01, 0.05, 20  # mass of a tail: a hundredth, or more where that is too few values
_BIN_VALUES = 10  # fewer are no estimate of a bin's probability
_SHAPES = (0.1, 1.0)  # of a tail: the first keeps surprise growing with the logarithm, with the second a mean is gone
_SHAPE = 0.5  # where the excesses are too few to tell; where there are none, the largest
_SHAPE_VALUES = 12
# A tail's scale is at least these parts of the interquartile range and of the outer edges: it divides distances, and a
# constant that moves by its last digits is no catastrophe. What was always 0 has no scale to go by.
_OF_SPREAD, _OF_SIZE, _OF_ZEROS, _LEAST = 0.01, 0.001, 0.001, 1e-9


@dataclass(frozen=True)
class Tail:
    """How density falls with the distance z beyond the bins: as (1 + shape z / scale)^-(1 + 1 / shape).

    This is the generalised Pareto distribution, with a positive shape only, so of unbounded support.
    """

    scale: float
    shape: float

    @classmethod
    def fit(cls, excesses: NDArray[np.float64], least_scale: float) -> Tail:
        """Fit to distances beyond the bins, of which up to a quarter may be anything at all.

        Parameters
        ----------
        excesses
            (m,) float64, at least 0.
        least_scale
            The scale where there are none, and never less.

        References
        ----------
        Pickands 1975, Statistical inference using extreme order statistics (doi:10.1214/aos/1176343003): the median M
        and the upper quartile Q of a generalised Pareto distribution have Q / M - 1 = 2^shape. The shape is clipped,
        and the scale then follows from the median, M = scale (2^shape - 1) / shape.
        """
        if not len(excesses):
            return cls(least_scale, _SHAPES[1])
        shape = _SHAPE
        median, quartile = np.quantile(excesses, [0.5, 0.75]).tolist()
        if len(excesses) >= _SHAPE_VALUES and median > 0:
            shape = min(max(math.log2(max(quartile / median - 1, 1e-9)), _SHAPES[0]), _SHAPES[1])
        return cls(min(max(shape * median / (2**shape - 1), least_scale), LARGEST), shape)

    def distance(self, beyond: float) -> float:
        """The distance that a share `beyond` of the tail exceeds."""
        return self.scale * (math.pow(max(beyond, 1e-9), -self.shape) - 1) / self.shape


@dataclass(frozen=True)
class Binning:
    """The bins of one number and its tails.

    Bins hold equal mass in training, and a value that takes as much as a bin has one of its own, so zeros stay apart
    from all that is not zero. Constants, few values and no value at all work; of none, every number is unknown.

    It fails where mass moves within a bin, which changes no id; and where a value of training's middle is strange only
    because the values around it never came, for a bin has no holes.

    Attributes
    ----------
    edges
        (K + 1,) float64, ascending: bin k holds what is at least `edges[k]` and below `edges[k + 1]`. Empty where
        training had no number.
    low, high
        The tails below and above.

    References
    ----------
    Ehrlich, Callot, Aubet 2021, Spliced Binned-Pareto distribution for robust modeling of heavy-tailed time series
    (arXiv:2106.10952). Departures: bins of equal mass instead of equal width, so no scale must be known; tails are
    fitted once, not predicted, so an event costs the softmax alone.
    """

    edges: NDArray[np.float64]
    low: Tail
    high: Tail

    @classmethod
    def learn(cls, values: NDArray[np.float64], bins: int = BINS) -> Binning:
        """Learn from training's values.

        Parameters
        ----------
        values
            (n,) float64 in any order; NaN is passed over.
        bins
            How many bins of equal mass, where the values suffice; those of single values and the gaps between them
            may come on top, to about twice as many.
        """
        x = np.clip(np.sort(values[~np.isnan(values)]), -LARGEST, LARGEST) + 0.0  # of two zeros, the positive one
        if not len(x):
            return cls(np.empty(0), Tail(_OF_ZEROS, _SHAPE), Tail(_OF_ZEROS, _SHAPE))
        edges = _edges(x, bins)
        lower, upper = np.quantile(x, [0.25, 0.75])  # what a strange value far away does not move
        scale = max(_OF_SPREAD * float(upper - lower), _OF_SIZE * float(max(abs(edges[0]), abs(edges[-1]))))
        least = max(scale, _LEAST) if x[0] or x[-1] else _OF_ZEROS
        low, high = edges[0] - x[x < edges[0]], x[x >= edges[-1]] - edges[-1]
        return cls(edges, Tail.fit(low, least), Tail.fit(high, least))

    @property
    def size(self) -> int:
        """How many ids there are, those of unknown and missing numbers included."""
        return LOW + len(self.edges) + 1 if len(self.edges) else LOW

    def ids(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """(n,) int32 ids of (n,) float64 values: UNKNOWN, MISSING, the low tail, the bins, the high tail."""
        return NumberBins((self,)).encoder().ids(values[:, None])[:, 0]

    def tail_surprise(self, values: NDArray[np.float64], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(n,) float32 nats to add to the surprise of the ids: minus the log of its density over that at the edge.

        0 for ids of bins. In a tail it is 0 at the edge and grows with the logarithm of the distance; in training its
        mean there is 1 + shape. Finite for every float but NaN, whose id is no tail's.
        """
        return NumberBins((self,)).encoder().tails(values[:, None], ids[:, None])[:, 0]

    def interval(
        self, probabilities: NDArray[np.floating[Any]], low: float = 0.05, high: float = 0.95
    ) -> tuple[float, float, float] | None:
        """Quantile `low`, median and quantile `high` of a predicted distribution, given that there is a number.

        Parameters
        ----------
        probabilities
            (V,) of the ids; V may be larger than `size`, where another name's bins are more.

        Returns
        -------
        interval
            In the number's own units; None where the distribution or the binning has no number.
        """
        mass = np.asarray(probabilities[LOW : self.size], np.float64)
        total = float(mass.sum())
        if not total > 0:
            return None
        cumulated = np.cumsum(mass / total)
        below, middle, above = (self._quantile(cumulated, share) for share in (low, 0.5, high))
        return below, middle, above

    def _quantile(self, cumulated: NDArray[np.float64], share: float) -> float:
        """Where a share of the mass lies below: linear within a bin, by the tail's distribution within a tail."""
        last = len(self.edges)
        at = min(int(np.searchsorted(cumulated, share, side="left")), last)
        before = float(cumulated[at - 1]) if at else 0.0
        within = min(max((share - before) / max(float(cumulated[at]) - before, 1e-300), 0.0), 1.0)
        if at == 0:
            return float(max(self.edges[0] - self.low.distance(within), -LARGEST))
        if at == last:
            return float(min(self.edges[-1] + self.high.distance(1 - within), LARGEST))
        left, right = float(self.edges[at - 1]), float(self.edges[at])
        return left if right <= _above(left) else left + within * (right - left)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, every bit."""
        tails = {name: [tail.scale, tail.shape] for name, tail in (("low", self.low), ("high", self.high))}
        return {"edges": self.edges.tolist(), **tails}

    @classmethod
    def from_json(cls, found: Any) -> Binning:
        """What `to_json` gave.

        Raises
        ------
        ValueError
            It is damaged.
        """
        try:
            edges = np.array(found["edges"], np.float64)
            low, high = (Tail(*map(float, found[name])) for name in ("low", "high"))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(_DAMAGED) from None
        is_finite = edges.ndim == 1 and len(edges) != 1 and bool(np.all(np.abs(edges) <= 2 * LARGEST))
        if not is_finite or not np.all(np.diff(edges) > 0) or not (_is_sound(low) and _is_sound(high)):
            raise ValueError(_DAMAGED)
        return cls(edges, low, high)


def _is_sound(tail: Tail) -> bool:
    return _LEAST <= tail.scale <= LARGEST and _SHAPES[0] <= tail.shape <= _SHAPES[1]


def _above(value: float) -> float:
    """The next number a bin of `value` alone ends at; never subnormal, which some processors' modes take for 0."""
    return max(math.nextafter(value, math.inf), value + 1e-300)


def _edges(x: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Edges of bins for n sorted values without NaN."""
    n = len(x)
    tail = min(math.ceil(min(max(_TAIL, _TAIL_VALUES / n), _LARGEST_TAIL) * n), (n - 1) // 2)
    distinct, counts = np.unique(x, return_counts=True)
    heavy = distinct[counts >= max(n / bins, _BIN_VALUES)].tolist()
    lowest, highest = float(x[tail]), float(x[n - 1 - tail])
    if heavy:
        lowest, highest = min(lowest, heavy[0]), max(highest, heavy[-1])
    edges, start = [lowest], lowest
    for value in [*heavy, None]:  # what lies before each heavy value, then the value itself; at last what lies above
        end = _above(highest) if value is None else value
        between = x[np.searchsorted(x, start) : np.searchsorted(x, end)]
        pieces = max(1, min(round(len(between) * bins / n), len(between) // _BIN_VALUES))
        edges += [float(between[len(between) * i // pieces]) for i in range(1, pieces)]
        edges += [end] if value is None else [end, _above(end)]
        start = edges[-1]
    return np.unique(np.array(edges))


@dataclass(frozen=True)
class NumberBins:
    """What training learned of all numbers of a stream.

    Attributes
    ----------
    binnings
        Column by column: one, or where a field names the column's numbers, one for each of its names.
    names
        For each column its names, or None where it stands for itself; None where all do.
    """

    binnings: tuple[Binning, ...]
    names: tuple[tuple[str, ...] | None, ...] | None = None

    @classmethod
    def learn(
        cls, numbers: NDArray[np.float64], names: Names | None = None, *, bins: int = BINS, max_names: int = MAX_NAMES
    ) -> NumberBins:
        """Learn from training's numbers.

        Parameters
        ----------
        numbers
            (n, N) float64.
        names
            For each column the names of its n numbers, None where one has none; None for a column that stands for
            itself. Of a column's names that come with numbers the most frequent are kept, ties in order of text; a
            name seen once is not.
        """
        if names is None or all(given is None for given in names):
            return cls(tuple(Binning.learn(column, bins) for column in numbers.T))
        known: list[tuple[str, ...] | None] = []
        groups: list[NDArray[np.float64]] = []
        for column, given in zip(numbers.T, names, strict=True):
            if given is None:
                known.append(None)
                groups.append(column)
                continue
            common = _common(column, given, max_names)
            which = _positions(common, given)
            order = np.argsort(which, kind="stable")
            bounds = np.searchsorted(which[order], np.arange(len(common) + 1))
            known.append(tuple(common))
            groups += [column[order[low:high]] for low, high in pairwise(bounds.tolist())]
        return cls(tuple(Binning.learn(group, bins) for group in groups), tuple(known))

    @cached_property
    def columns(self) -> tuple[range, ...]:
        """Where the binnings of each column stand."""
        if self.names is None:
            return tuple(range(i, i + 1) for i in range(len(self.binnings)))
        bounds = [0, *accumulate(1 if names is None else len(names) for names in self.names)]
        return tuple(range(low, high) for low, high in pairwise(bounds))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of ids of each number column: names share one column, so they share the largest of their sizes."""
        return tuple(max((self.binnings[i].size for i in own), default=LOW) for own in self.columns)

    def of(self, column: int, name: str | None = None) -> Binning | None:
        """The binning of a column, or of a name where its numbers have names; None if that is unknown."""
        own = self.columns[column]
        if self.names is None or self.names[column] is None:
            return self.binnings[own[0]]
        at = self._positions[column].get(name)
        return None if at is None else self.binnings[own[at]]

    @cached_property
    def _positions(self) -> tuple[dict[str | None, int], ...]:
        return tuple({name: i for i, name in enumerate(names or ())} for names in self.names or ())

    def encoder(self) -> NumberEncoder:
        """What gives the ids."""
        return NumberEncoder(self)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, every bit."""
        return {"names": self.names, "binnings": [binning.to_json() for binning in self.binnings]}

    @classmethod
    def from_json(cls, found: Any) -> NumberBins:
        """What `to_json` gave, JSON's lists for tuples included.

        Raises
        ------
        ValueError
            It is damaged.
        """
        try:
            names, given = found["names"], list(found["binnings"])
        except (KeyError, TypeError):
            raise ValueError(_DAMAGED) from None
        if names is not None:
            if all(isinstance(name, str) for name in names):  # as written when there was but one named column
                names = [names]
            names = tuple(None if of is None else tuple(map(str, of)) for of in names)
            if sum(1 if of is None else len(of) for of in names) != len(given):
                raise ValueError(_DAMAGED)
        return cls(tuple(map(Binning.from_json, given)), names)


class NumberEncoder:
    """Turns columns of numbers into ids and what their tails add; the same for a number in any company.

    Without anything learned (no bundle yet) every number is UNKNOWN; a missing one is MISSING all the same.
    """

    def __init__(self, learned: NumberBins | None) -> None:
        binnings = () if learned is None else learned.binnings
        self._names = None if learned is None else learned.names
        self.columns = () if learned is None else learned.columns
        self._starts = np.cumsum([0, *(len(b.edges) for b in binnings)])
        self._edges = np.concatenate([np.empty(0), *(b.edges for b in binnings)])
        tails = [(b.low.scale, b.low.shape, b.high.scale, b.high.shape) for b in binnings]
        self._tails = np.array(tails, np.float64).reshape(-1, 4)

    def ids(self, numbers: NDArray[np.float64], names: Names | None = None) -> NDArray[np.int32]:
        """(n, N) int32 ids of (n, N) float64 numbers; `names` as in `NumberBins.learn`."""
        out = np.empty(numbers.shape, np.int32)
        _ids(numbers, self._which(numbers, names), self._starts, self._edges, out)
        return out

    def tails(
        self, numbers: NDArray[np.float64], ids: NDArray[np.int32], names: Names | None = None
    ) -> NDArray[np.float32]:
        """(n, N) float32 nats to add to the surprise of `ids`; see `Binning.tail_surprise`."""
        out = np.zeros(numbers.shape, np.float32)
        _tails(numbers, ids, self._which(numbers, names), self._starts, self._edges, self._tails, out)
        return out

    def among(self, ids: NDArray[np.int32], names: Names | None = None) -> NDArray[np.int32]:
        """(n, N, 2) int32: from which of the ids that the number's name allows, to before which.

        A number has one of its binning's ids or is missing. One without bins cannot but be as it is.
        """
        which = self._which(ids, names)
        sizes = np.append(np.diff(self._starts), 0)[which]  # -1: the last
        first, last = np.where(sizes, MISSING, ids), np.where(sizes, LOW + 1 + sizes, ids + 1)
        return np.stack([first, last], axis=2).astype(np.int32)

    def _which(self, numbers: NDArray[Any], names: Names | None) -> NDArray[np.int32]:
        """(n, N) int32: the binning of each number; -1 for none."""
        if not len(self._tails):
            return np.full(numbers.shape, -1, np.int32)
        if self._names is None:
            return np.broadcast_to(np.arange(numbers.shape[1], dtype=np.int32), numbers.shape)
        assert names is not None  # they were learned by name
        which = np.empty(numbers.shape, np.int32)
        for c, (known, given, own) in enumerate(zip(self._names, names, self.columns, strict=True)):
            if known is None or given is None:
                which[:, c] = own.start if known is None else -1
            else:
                at = _positions(known, given)
                which[:, c] = np.where(at < 0, -1, at + own.start)
        return which


def _common(numbers: NDArray[np.float64], names: Sequence[str | None], at_most: int) -> list[str]:
    """The names to keep, the most frequent first."""
    has_number = ~np.isnan(numbers)
    counts = Counter(n for n, counted in zip(names, has_number.tolist(), strict=True) if counted and n is not None)
    return sorted((name for name, count in counts.items() if count > 1), key=lambda n: (-counts[n], n))[:at_most]


def _positions(known: Sequence[str], names: Sequence[str | None]) -> NDArray[np.int32]:
    """(n,) int32: where each name stands in `known`; -1 where it does not."""
    position: dict[str | None, int] = {name: i for i, name in enumerate(known)}
    return np.array([position.get(name, -1) for name in names], np.int32)


@njit(cache=True)
def _ids(numbers, which, starts, edges, out):
    n, columns = numbers.shape
    for c in range(columns):
        for i in range(n):
            value, b = numbers[i, c], which[i, c]
            if math.isnan(value):
                out[i, c] = MISSING
            elif b < 0 or starts[b] == starts[b + 1]:
                out[i, c] = UNKNOWN
            else:
                value = min(max(value, -LARGEST), LARGEST)
                low, high = starts[b], starts[b + 1]
                while low < high:  # the first edge above the value
                    middle = (low + high) // 2
                    if edges[middle] <= value:
                        low = middle + 1
                    else:
                        high = middle
                out[i, c] = LOW + low - starts[b]


@njit(cache=True)
def _tails(numbers, ids, which, starts, edges, tails, out):
    """One scalar logarithm each, so no value's bits depend on its neighbours."""
    n, columns = numbers.shape
    for c in range(columns):
        for i in range(n):
            b = which[i, c]
            if b < 0 or ids[i, c] < LOW:
                continue
            value = min(max(numbers[i, c], -LARGEST), LARGEST)
            first, last = edges[starts[b]], edges[starts[b + 1] - 1]
            if value < first:
                out[i, c] = _nats(first - value, tails[b, 0], tails[b, 1])
            elif value >= last:
                out[i, c] = _nats(value - last, tails[b, 2], tails[b, 3])


@njit(cache=True)
def _nats(distance, scale, shape):
    return np.float32((1.0 + 1.0 / shape) * math.log1p(min(shape * distance / scale, 1e308)))
