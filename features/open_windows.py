"""What is remembered of open windows: their samples, counters, and how far each session has come; as bytes by row."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.event_order import Ordered
from features.runs import finishes

if TYPE_CHECKING:
    from features.windows import WindowRules

NO_WINDOWS = b""
NO_MS = -1  # event times are never negative
BEFORE = -1  # the position of a sample of an earlier slice
_PREFIX_BYTES = 8
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Samples as columns, session by session, each session's in the order in which they were taken in.

    Attributes
    ----------
    session, position
        (m,) int64: the row, and which of the slice's samples it is (-1: of an earlier slice).
    time_ms, mark_ms
        (m,) int64: its time, and the mark of its session with it.
    is_end
        (m,) bool.
    offset
        (m,) int64.
    said
        (m,) int64: where its tokens are: those of the slice, then those kept; -1 where nobody asks for them.
    numbers
        (m, N) float64.
    """

    session: Ints
    position: Ints
    time_ms: Ints
    mark_ms: Ints
    is_end: NDArray[np.bool_]
    offset: Ints
    said: Ints
    numbers: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.session)

    def take(self, chosen: NDArray[np.intp]) -> Samples:
        """Some of them, in the order given."""
        return Samples(*(getattr(self, f.name)[chosen] for f in fields(self)))


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """A row: its mark, its newest sample since its last end (-1: none), counters, and the samples of open windows.

    Only of the latest sample of each `every_ms` are the tokens kept, with its place: a window tells no other's.
    """

    mark_ms: int
    newest_ms: int
    counters: bytes
    counters_ms: bytes
    time_ms: bytes
    offset: bytes
    numbers: bytes
    places: list[int]
    tokens: list[list[str | None]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


def next_close_ms(packed: bytes) -> int:
    """After which release watermark the earliest open window of a row closes, or what else it holds is forgotten."""
    return int.from_bytes(packed[:_PREFIX_BYTES], "big")


@dataclass
class Memory:
    """What is remembered of S rows, while a slice goes through them.

    Attributes
    ----------
    kept
        Samples of windows that were open before.
    given, tokens, arrived
        Columns of text of the slice's samples, tokens of each kept sample that has any, and how many the slice's are.
    touched
        (S,) bool: rows that the slice may change; the others' bytes stay.
    mark_ms, newest_ms
        (S,) int64: how far each session has come, and its newest sample.
    counters, counters_ms
        (S, C) each counter's last value (NaN: none), and when that was.
    """

    kept: Samples
    given: list[list[str | None]]
    tokens: list[list[str | None]]
    arrived: int
    touched: NDArray[np.bool_]
    mark_ms: Ints
    newest_ms: Ints
    counters: NDArray[np.float64]
    counters_ms: Ints

    @classmethod
    def unpack(cls, ordered: Ordered, packed: NDArray[Any], rules: WindowRules, *, look_at_all: bool) -> Memory:
        """Read the rows that have samples in the slice, or something that is due."""
        events, rows, counters = ordered.events, len(packed), len(rules.counters)
        touched = np.zeros(rows, np.bool_)
        touched[events.session] = True
        filled = np.flatnonzero(packed.astype(np.bool_)).tolist()
        read = [r for r in filled if look_at_all or touched[r] or next_close_ms(packed[r]) < ordered.release_ms]
        touched[read] = True
        kept = [_decode(packed[row][_PREFIX_BYTES:]) for row in read]
        memory = cls(
            _samples(read, kept, len(events), events.numbers.shape[1]), events.texts,
            [tokens for k in kept for tokens in k.tokens], len(events), touched, np.full(rows, NO_MS),
            np.full(rows, NO_MS), np.full((rows, counters), np.nan), np.zeros((rows, counters), np.int64),
        )  # fmt: skip
        memory.mark_ms[read], memory.newest_ms[read] = [k.mark_ms for k in kept], [k.newest_ms for k in kept]
        memory.counters[read] = _join([k.counters for k in kept], "<f8").reshape(len(read), counters)
        memory.counters_ms[read] = _join([k.counters_ms for k in kept], "<i8").reshape(len(read), counters)
        return memory

    def tokens_of(self, said: int) -> list[str | None]:
        """The tokens that `Samples.said` tells of."""
        return self.tokens[said - self.arrived] if said >= self.arrived else [column[said] for column in self.given]

    def pack(self, into: NDArray[Any], samples: Samples, release_ms: int, rules: WindowRules) -> None:
        """Write the rows that were touched, with these samples of windows that stay open."""
        touched = np.flatnonzero(self.touched)
        into[touched] = NO_WINDOWS
        due_ms = self._due_ms(samples, rules)
        rows = touched[due_ms[touched] >= release_ms]
        latest = _latest(samples, rules)
        said = list(map(self.tokens_of, samples.said[latest].tolist()))
        times, offsets, numbers, counters, counters_ms = (
            column.astype(dtype).tobytes() for column, dtype in (
                (samples.time_ms, "<i8"), (samples.offset, "<i8"), (samples.numbers, "<f8"),
                (self.counters[rows], "<f8"), (self.counters_ms[rows], "<i8"),
            )
        )  # fmt: skip
        edges = np.searchsorted(samples.session, [rows, rows + 1])
        columns = self.mark_ms[rows], self.newest_ms[rows], due_ms[rows], *edges, *np.searchsorted(latest, edges)
        places, n, c = latest.tolist(), 8 * samples.numbers.shape[1], 8 * self.counters.shape[1]
        listed = zip(rows.tolist(), *(column.tolist() for column in columns), strict=True)
        for i, (row, mark_ms, newest_ms, due, low, high, first, end) in enumerate(listed):
            kept = _Kept(
                mark_ms, newest_ms, counters[i * c : i * c + c], counters_ms[i * c : i * c + c],
                times[8 * low : 8 * high], offsets[8 * low : 8 * high], numbers[n * low : n * high],
                [place - low for place in places[first:end]], said[first:end],
            )  # fmt: skip
            into[row] = due.to_bytes(_PREFIX_BYTES, "big") + _encode(kept)

    def _due_ms(self, samples: Samples, rules: WindowRules) -> Ints:
        """(S,) after which release watermark a window of a row closes, or nothing of it need be known any more.

        A mark is known as long as the release watermark has not come so far; counters for their session's gap.
        """
        due_ms = np.maximum(self.mark_ms - 1, 0)
        if rules.counters:
            due_ms = np.where(self.newest_ms != NO_MS, np.maximum(due_ms, rules.forget_ms(self.newest_ms)), due_ms)
        due_ms[samples.session] = rules.first_end(self.mark_ms[samples.session]) - 1
        return due_ms


def _latest(samples: Samples, rules: WindowRules) -> NDArray[np.intp]:
    """Which sample of each `every_ms` of a session is the latest."""
    panes = samples.time_ms // rules.every_ms
    order = np.lexsort((samples.time_ms, panes, samples.session))
    return np.sort(order[finishes(samples.session[order], panes[order])])


def _samples(rows: list[int], kept: list[_Kept], arrived: int, width: int) -> Samples:
    """What rows keep; the tokens of the first that has any are number `arrived`."""
    sizes = np.array([len(k.time_ms) // 8 for k in kept], np.int64)
    begin = (np.cumsum(sizes) - sizes).tolist()
    m = int(sizes.sum())
    said = np.full(m, -1)
    places = [low + place for low, k in zip(begin, kept, strict=True) for place in k.places]
    said[places] = arrived + np.arange(len(places))
    return Samples(
        np.repeat(np.array(rows, np.int64), sizes), np.full(m, BEFORE), _join([k.time_ms for k in kept], "<i8"),
        np.repeat(np.array([k.mark_ms for k in kept], np.int64), sizes), np.zeros(m, np.bool_),
        _join([k.offset for k in kept], "<i8"), said, _join([k.numbers for k in kept], "<f8").reshape(m, width),
    )  # fmt: skip


def _join(parts: list[bytes], dtype: str) -> NDArray[Any]:
    return np.frombuffer(b"".join(parts), dtype)
