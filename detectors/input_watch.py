"""Whether a stream's fields are still distributed as in training: their tokens, their numbers, their unknown values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from detectors.drift_events import DriftEvent, DriftType
from detectors.intervals import BINS, GROUPS, Binned, Change, Floats, IntervalState, IntervalWatch, Reference
from detectors.usual_intervals import learn as learn_usual
from features.events import Events
from features.tokens import MISSING, OOV

MAX_FIELDS = 128  # that are watched; those after them are not
_TOP = BINS - 2  # tokens with a bin of their own; all others share one, and missing ones another
_REST, _MISSING = BINS - 2, BINS - 1
_TYPES: tuple[DriftType, DriftType] = ("input_drift", "unknown_drift")


@dataclass(frozen=True, eq=False)
class UsualInputs:
    """What training left: bins of each field, and how often they were filled.

    Attributes
    ----------
    top
        Of each token field the ids of its most frequent tokens, the most frequent first.
    edges
        Of each number field the bins' upper edges, ascending.
    """

    top: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[float, ...], ...]
    reference: Reference

    def to_json(self) -> dict[str, Any]:
        """As a bundle holds it."""
        return {"top": self.top, "edges": self.edges} | self.reference.to_json()

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """What `to_json` gave. KeyError, ValueError: it is none."""
        top, edges = (tuple(map(tuple, saved[name])) for name in ("top", "edges"))
        return cls(top, edges, Reference.from_json(saved))


@dataclass(frozen=True)
class InputWatch:
    """Counts and judges the fields of a stream, interval by interval; `IntervalWatch` says when it fails.

    Attributes
    ----------
    tokens, numbers
        Names of the token fields and the number fields, in their order.
    usual
        What training left; None: nothing is watched.
    after_ms
        For training: how long a change must last, by event time. None: as `detectors.usual_intervals.learn` has it.
    """

    tokens: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    usual: UsualInputs | None = None
    after_ms: int | None = None

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Those that are watched."""
        return (*self.tokens, *self.numbers)[:MAX_FIELDS]

    def update_many(
        self, state: IntervalState | None, events: Events, ids: NDArray[np.int32]
    ) -> tuple[IntervalState | None, list[DriftEvent]]:
        """Count a slice's valid records, and judge each interval that they end.

        Parameters
        ----------
        events
            In offset order.
        ids
            (n, F) token ids.
        """
        if self.usual is None or not self.fields or not len(events):
            return state, []
        state, changes = self._watch.update_many(state, self._binned(events, ids, self.usual))
        return state, [self._event(change) for change in changes if change.kind < len(_TYPES)]

    @cached_property
    def _watch(self) -> IntervalWatch:
        assert self.usual is not None, "asked for only where there is one"
        return IntervalWatch(self.usual.reference)

    def learn(self, parts: Sequence[tuple[Events, NDArray[np.int32], NDArray[np.bool_]]]) -> UsualInputs:
        """What is usual, from a history; `parts` as `SchemaWatch.learn` takes them."""
        tokens = [np.concatenate([ids[:, f] for _, ids, _ in parts]) for f in range(len(self.tokens))]
        numbers = [np.concatenate([events.numbers[:, f] for events, _, _ in parts]) for f in range(len(self.numbers))]
        unlearned = Reference.empty(len(self.fields))
        usual = UsualInputs(tuple(map(_top, tokens)), tuple(map(_edges, numbers)), unlearned)
        binned = [self._binned(events, ids, usual) for events, ids, _ in parts]
        worth = np.zeros((len(self.fields), BINS))
        reference = learn_usual(binned, [new for _, _, new in parts], worth, self.after_ms)
        return UsualInputs(usual.top, usual.edges, reference)

    def _binned(self, events: Events, ids: NDArray[np.int32], usual: UsualInputs) -> Binned:
        bins = np.empty((len(events), len(self.tokens) + len(self.numbers)), np.uint8)
        for f, top in enumerate(usual.top):
            bins[:, f] = _bins_of_ids(ids[:, f], top)
        for f, edges in enumerate(usual.edges):
            bins[:, len(self.tokens) + f] = _bins_of_numbers(events.numbers[:, f], edges)
        return Binned(bins[:, : len(self.fields)], groups_of(events), events.time_ms, events.offsets)

    def _event(self, change: Change) -> DriftEvent:
        return DriftEvent(
            _TYPES[change.kind], self.fields[change.column], change.has_begun, change.offset, change.since_ms,
            change.records, change.statistic, change.amount, change.usual, change.limit, change.p_value,
        )  # fmt: skip


def groups_of(events: Events) -> NDArray[np.int64]:
    """(n,) groups of the events' sessions, by their names alone."""
    if not len(events):
        return np.empty(0, np.int64)
    return np.array([crc32(name.encode()) % GROUPS for name in events.sessions], np.int64)[events.session]


def _top(ids: NDArray[np.int32]) -> tuple[int, ...]:
    """The most frequent of (n,) ids but for unknown and missing ones, ties in order of ids."""
    found, counts = np.unique(ids[(ids != OOV) & (ids != MISSING)], return_counts=True)
    return tuple(found[np.lexsort((found, -counts))][:_TOP].tolist())


def _bins_of_ids(ids: NDArray[np.int32], top: Sequence[int]) -> NDArray[np.uint8]:
    table = np.full(max([int(ids.max(initial=0)), MISSING, *top]) + 1, _REST, np.uint8)
    table[list(top)] = np.arange(len(top))
    table[MISSING], table[OOV] = _MISSING, BINS
    return table[ids]


def _edges(values: Floats) -> tuple[float, ...]:
    """Edges that cut (n,) numbers into bins of like size, NaN left out, at most 13.

    A value that is more frequent than a bin has one to itself. So a constant has three: below, it, and above.
    """
    values = values[~np.isnan(values)]
    for bins in range(_REST + 1, 1, -1) if len(values) else ():
        at = np.quantile(values, np.arange(1, bins) / bins, method="lower")
        distinct, often = np.unique(at, return_counts=True)
        edges = np.unique(np.concatenate([distinct, np.nextafter(distinct[often > 1], -np.inf)]))
        if len(edges) < _MISSING:
            return tuple(edges.tolist())
    return ()


def _bins_of_numbers(values: Floats, edges: Sequence[float]) -> NDArray[np.uint8]:
    bins = np.searchsorted(np.array(edges), values, side="left").astype(np.uint8)
    bins[np.isnan(values)] = _MISSING
    return bins
