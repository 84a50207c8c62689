"""A session's last events, as its row keeps them: looked up for explanations, and replayed under a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.ensemble import sum_fields
from detectors.parts import Parts
from detectors.rows import SessionRows
from features.sessions import STEP, log_gaps
from models.runtime import F32, Runtime

if TYPE_CHECKING:
    from features.events import Events
    from features.sessions import Walk

END = 2  # any operation that is no event


class Walked(Protocol):
    """A slice's events, with what was made of each."""

    @property
    def events(self) -> Events:
        """N of them."""
        ...

    @property
    def walk(self) -> Walk:
        """As operations on sessions."""
        ...

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(n, F) of tokens."""
        ...

    @property
    def measures(self) -> F32:
        """(n, N) of numbers."""
        ...


@dataclass(frozen=True)
class Window:
    """Events of one session, oldest first: (k,) times, (k, F) hashes of tokens, (k, N) numbers.

    `is_whole`: the first of them opened the session.
    """

    time_ms: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    measures: F32
    is_whole: bool

    def last(self, most: int) -> Window:
        """Its last events."""
        is_whole = self.is_whole and len(self.time_ms) <= most
        return Window(self.time_ms[-most:], self.hashes[-most:], self.measures[-most:], is_whole)

    def without(self, event: int) -> Window:
        """The same as if an event had never been."""
        kept = np.arange(len(self.time_ms)) != event
        return Window(self.time_ms[kept], self.hashes[kept], self.measures[kept], self.is_whole)

    def until(self, event: int) -> Window:
        """Up to an event, that included."""
        stop = event + 1
        return Window(self.time_ms[:stop], self.hashes[:stop], self.measures[:stop], self.is_whole)

    @classmethod
    def of_row(cls, rows: SessionRows, row: int) -> Window:
        """What a row keeps."""
        time_ms, hashes, measures = rows.recent(row)
        return cls(time_ms, hashes, measures, int(rows.events[row]) <= len(time_ms))

    @classmethod
    def before(cls, verdicts: Walked, operation: int, rows: SessionRows, *, itself: bool = False) -> Window:
        """A session's events before an operation of the walk, the same however the stream was sliced.

        Parameters
        ----------
        rows
            Those before the slice.
        itself
            The event that the operation is comes last.
        """
        walk, events = verdicts.walk, verdicts.events
        row, until = walk.row[operation], operation + itself
        mine = np.flatnonzero((walk.row[:until] == row) & (walk.kind[:until] == STEP))
        records = walk.record[mine]
        opened = np.flatnonzero(walk.first[records])
        if not itself and walk.kind[operation] == STEP and walk.first[walk.record[operation]]:
            opened, records = np.zeros(1, np.intp), records[:0]
        records = records[opened[-1] :] if len(opened) else records
        here = cls(events.time_ms[records], verdicts.hashes[records], verdicts.measures[records], is_whole=True)
        if len(opened) or rows.events[row] == 0:
            return here
        kept = cls.of_row(rows, int(row))
        return cls(
            np.concatenate([kept.time_ms, here.time_ms]), np.concatenate([kept.hashes, here.hashes]),
            np.concatenate([kept.measures, here.measures]), kept.is_whole,
        )  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """What a model says of windows that it reads from its start.

    Attributes
    ----------
    score
        (n,) of all events, window by window; -inf of one that opens its window and did not open its session.
    surprise
        (n, F + N) nats per field.
    starts
        (S,) where each window begins.
    end_surprise
        (S,) of each window's session ending now.
    hidden
        (S, width) after each.
    states
        (n, H): what heads read of each event.
    """

    score: F32
    surprise: F32
    starts: NDArray[np.intp]
    end_surprise: F32
    hidden: F32
    states: F32


@dataclass(frozen=True)
class Joined:
    """The n events of S windows, window by window, as a model reads them.

    Attributes
    ----------
    starts, lengths, is_whole
        (S,) where each window begins, its events, and whether the first of them opened the session.
    time_ms, latest
        (n,) times, and where the latest event of the window so far stands, that one included.
    measures, ids, among, tails
        (n, ...) as `models.runtime.Runtime.score_and_step` takes them.
    """

    starts: NDArray[np.intp]
    lengths: NDArray[np.intp]
    is_whole: NDArray[np.bool_]
    time_ms: NDArray[np.int64]
    latest: NDArray[np.intp]
    measures: F32
    ids: NDArray[np.int32]
    among: NDArray[np.int32]
    tails: F32

    @classmethod
    def of(cls, windows: Sequence[Window], parts: Parts) -> Joined:
        """Of windows, of which there is one, each with an event."""
        lengths = np.array([len(window.time_ms) for window in windows])
        times = np.concatenate([window.time_ms for window in windows])
        hashes = np.concatenate([window.hashes for window in windows])
        measures = np.concatenate([window.measures for window in windows])
        ids = parts.ids_of_context(hashes, measures, times)
        starts = np.cumsum(lengths) - lengths
        return cls(
            starts, lengths, np.array([window.is_whole for window in windows]), times, _latest(times, starts, lengths),
            measures, ids, parts.among_of_context(hashes, ids), parts.tails_of_context(hashes, measures, ids),
        )  # fmt: skip


def _latest(
    times: NDArray[np.int64], starts: NDArray[np.intp], lengths: NDArray[np.intp]
) -> NDArray[np.intp]:  # fmt: skip
    """(n,) where the latest event so far of each event's window stands: itself, unless the clock went back."""
    at = np.arange(len(times))
    is_latest = np.append(True, times[1:] >= times[:-1])
    is_latest[starts] = True
    if is_latest.all():
        return at
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        mine = times[start : start + length]
        rises = mine >= np.maximum.accumulate(mine)
        at[start : start + length] = start + np.maximum.accumulate(np.where(rises, np.arange(length), 0))
    return at


def replay(windows: Sequence[Window], model: Runtime, width: int, parts: Parts) -> Replayed:
    """Read windows, of which there is one, each with an event; `width` is that of a row's state."""
    return replay_joined(Joined.of(windows, parts), model, width)


def replay_joined(joined: Joined, model: Runtime, width: int) -> Replayed:
    """The same of windows that are joined already."""
    n, count = len(joined.time_ms), len(joined.starts)
    first = np.zeros(n, np.bool_)
    first[joined.starts] = True
    # As live: a gap is since the latest event so far.
    latest_ms = joined.time_ms[joined.latest]
    gaps = np.maximum(joined.time_ms - np.concatenate([joined.time_ms[:1], latest_ms[:-1]]), 0)
    gaps[first] = 0
    every = np.arange(count, dtype=np.int32)
    kind = np.repeat([STEP, END], [n, count]).astype(np.int8)
    record = np.concatenate([np.arange(n, dtype=np.int32), np.zeros(count, np.int32)])
    scores = model.score_and_step(
        kind, np.concatenate([np.repeat(every, joined.lengths), every]), record, first,
        joined.ids, log_gaps(gaps), np.zeros((count, width), np.float32),
        joined.among, joined.measures, joined.tails, joined.time_ms,
    )  # fmt: skip
    score = sum_fields(scores.surprise)
    score[joined.starts[~joined.is_whole]] = -np.inf
    return Replayed(score, scores.surprise, joined.starts, scores.end_surprise[n:], scores.hidden, scores.states[:n])
