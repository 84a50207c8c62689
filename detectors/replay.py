"""A history scored as a worker would score it, slice by slice with rows carried, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rows import PartitionState, SessionRows
from features.events import Events

SLICE = 20_000  # events: large enough that a slice's own cost vanishes, and its verdicts take some ten megabytes


@dataclass(frozen=True)
class Replayed:
    """Verdicts on a slice, and which of the history's session names each of its rows is: (R,) int64."""

    verdicts: Verdicts
    names: NDArray[np.int64]


def replay(events: Events, parts: Parts, most: int = SLICE) -> Iterator[Replayed]:
    """Score a partition's events from nothing, and end all sessions at last.

    The verdicts are those of one slice of all: slicing changes none. Only rows of open sessions are kept.

    Parameters
    ----------
    events
        As they came, without duplicates.
    most
        Events in a slice.
    """
    open_ = _Open(np.empty(0, np.int64), SessionRows.empty(0, parts.shape))
    state = PartitionState(0)
    for low in range(0, len(events) + most, most):
        piece = events.take(np.arange(low, min(low + most, len(events))))
        close_all = len(piece) == 0
        newest_ms = max([state.watermark_ms, *piece.time_ms.tolist()])
        names = np.union1d(piece.session, open_.names if close_all else open_.due(newest_ms, parts)).astype(np.int64)
        piece = replace(
            piece, session=np.searchsorted(names, piece.session).astype(np.int32),
            sessions=[events.sessions[name] for name in names.tolist()], rejects=[],
        )  # fmt: skip
        verdicts, after, state = process_batch(piece, open_.rows_of(names, parts), state, parts, close_all=close_all)
        open_ = open_.with_changes(names, after)
        yield Replayed(verdicts, names)
        if close_all:
            return


@dataclass(frozen=True)
class _Open:
    """Open sessions: (k,) their names, ascending, and their rows."""

    names: NDArray[np.int64]
    rows: SessionRows

    def due(self, newest_ms: int, parts: Parts) -> NDArray[np.int64]:
        """Names of those that may be over, or that hold back what may go, once an event of that time has come."""
        return self.names[self.rows.due_ms(parts.rules) <= newest_ms]

    def rows_of(self, names: NDArray[np.int64], parts: Parts) -> SessionRows:
        """Rows of these names, ascending, in their order; empty ones of those that are not open."""
        rows = SessionRows.empty(len(names), parts.shape)
        known = np.flatnonzero(np.isin(names, self.names))
        rows.put(known, self.rows.take(np.searchsorted(self.names, names[known])))
        return rows

    def with_changes(self, names: NDArray[np.int64], after: SessionRows) -> _Open:
        """The open sessions once these names have these rows."""
        untouched, still = np.flatnonzero(~np.isin(self.names, names)), np.flatnonzero(after.is_open)
        together = np.concatenate([self.names[untouched], names[still]])
        rows = SessionRows.concatenate([self.rows.take(untouched), after.take(still)])
        order = np.argsort(together)
        return _Open(together[order], rows.take(order))


class Numbered:
    """What comes of each name, one by one in its order, and the number that each has.

    Slices release events of different sessions in another order than one slice of all does; those of one name keep
    theirs, so they are known by how many of that name have come.
    """

    def __init__(self, names: NDArray[np.int32], numbers: NDArray[np.int32]) -> None:
        self._numbers = numbers[np.argsort(names, kind="stable")]
        counts = np.bincount(names)
        self._next = np.cumsum(counts) - counts

    def take(self, names: NDArray[np.int64]) -> NDArray[np.int32]:
        """(k,) numbers of the next ones of (k,) names, which may repeat."""
        order = np.argsort(names, kind="stable")
        found, starts, counts = np.unique(names[order], return_index=True, return_counts=True)
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names)) + np.repeat(self._next[found] - starts, counts)
        self._next[found] += counts
        return self._numbers[place]
