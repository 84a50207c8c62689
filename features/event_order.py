"""Event order: events held back for a while, so that those of one session are scored in the order of their times.

The release watermark of a partition is its largest event time less `reorder_ms`. An event is released once that has
reached its time, so one that comes at most `reorder_ms` behind the newest is put where it belongs. What is held lies
in the session's row. When somebody looks changes nothing: an event that could have been released earlier is released
before anything later of its session is taken in.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.events import Events
from features.sessions import NO_WATERMARK, SessionRules

NOTHING_HELD = b""
MAX_HELD_BYTES = 256 << 10  # of a session, so that its row fits into a Kafka message
MAX_MESSAGE_CHARACTERS = 1_024  # of a log line that waits: as much as is ever shown
_TIME_BYTES = 8


class HeldEvent(NamedTuple):
    """One event as it waits; they sort by time, those of one time by offset. Its segment is the last of its tokens."""

    time_ms: int
    offset: int
    is_end: bool
    tokens: list[str | None]
    message: str | None
    numbers: list[float]

    @property
    def size(self) -> int:
        """Bytes it takes while it waits, or a few more."""
        said = "" if self.message is None else self.message[:MAX_MESSAGE_CHARACTERS]
        texts = sum(5 + len(text.encode()) for text in (*self.tokens, said) if text is not None)
        return 32 + texts + 9 * len(self.numbers)

    def shortened(self) -> HeldEvent:
        """The same with no more of its message than is ever shown."""
        return self if self.message is None else self._replace(message=self.message[:MAX_MESSAGE_CHARACTERS])


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[HeldEvent]).decode


def pack_held(held: Sequence[HeldEvent]) -> bytes:
    """Held events, in order, as bytes: the earliest time, then all of them; none is `NOTHING_HELD`."""
    return held[0].time_ms.to_bytes(_TIME_BYTES, "big") + _encode(held) if held else NOTHING_HELD


def unpack_held(packed: bytes) -> list[HeldEvent]:
    """Inverse of `pack_held`."""
    return _decode(packed[_TIME_BYTES:]) if packed else []


def earliest_ms(packed: bytes) -> int:
    """Time of the earliest of packed events, of which there is one."""
    return int.from_bytes(packed[:_TIME_BYTES], "big")


@dataclass(frozen=True)
class Ordered:
    """What a slice releases.

    Attributes
    ----------
    events
        n released events, each session's in order. `index` is the event of the slice that released it, -1: none.
    watermarks
        (n,) int64: what an event may count on: nothing of its session that is released later is older, unless it comes
        too late.
    seen_at
        (n,) int64: the release watermark when the event was released; never falls.
    watermark_ms, release_ms
        Largest event time, and the release watermark, after the slice.
    held
        (S,) packed events that wait on, by row.
    early
        How many were released before their time, because their session held too many or too much.
    """

    events: Events
    watermarks: NDArray[np.int64]
    seen_at: NDArray[np.int64]
    watermark_ms: int
    release_ms: int
    held: NDArray[Any]
    early: int = 0


def put_in_order(
    events: Events, held: NDArray[Any], watermark_ms: int, rules: SessionRules, *, close_all: bool = False
) -> Ordered:
    """Take events in and release what is due.

    Parameters
    ----------
    events
        As they came; `session` numbers rows.
    held
        (S,) object: packed events of each row. Left untouched.
    watermark_ms
        Before the slice.
    close_all
        Release everything: the input is over.
    """
    newest = np.maximum.accumulate(np.concatenate([np.array([watermark_ms], np.int64), events.time_ms]))
    if not rules.reorder_ms:
        return Ordered(events, newest[1:], newest[1:], int(newest[-1]), int(newest[-1]), held)
    return _Reordering(events, held, newest - rules.reorder_ms, rules).run(close_all=close_all)


class _Reordering:
    """One slice on its way through the sessions' buffers.

    `passed` (n + 1,) is the release watermark before each event of the slice, and after the last.
    """

    def __init__(self, events: Events, held: NDArray[Any], passed: NDArray[np.int64], rules: SessionRules) -> None:
        self._events, self._held, self._passed, self._rules = events, held, passed, rules
        self._waiting = {row: unpack_held(packed) for row, packed in enumerate(held) if packed}
        self._bytes = {row: sum(event.size for event in waiting) for row, waiting in self._waiting.items()}
        self._released: list[tuple[int, int, int, HeldEvent]] = []  # seen at, row, watermark, event
        self._early = 0

    def run(self, *, close_all: bool) -> Ordered:
        """All of it, in the order of arrival."""
        passed = self._passed.tolist()
        for i, (row, event) in enumerate(zip(self._events.session.tolist(), _each(self._events), strict=True)):
            waiting = self._waiting.setdefault(row, [])
            self._release_until(passed[i], row, waiting)
            insort(waiting, event, key=_order)
            self._bytes[row] = self._bytes.get(row, 0) + event.size
            while waiting and (waiting[0].time_ms <= passed[i + 1] or self._is_too_much(row, waiting)):
                self._early += waiting[0].time_ms > passed[i + 1]
                self._release(i, row, passed[i], waiting)
        for row, waiting in self._waiting.items():
            self._release_until(passed[-1], row, waiting)
            while close_all and waiting:
                self._release(len(self._events) - 1, row, passed[-1], waiting)
        return self._ordered()

    def _release_until(self, passed: int, row: int, waiting: list[HeldEvent]) -> None:
        """Release what an event of another session made due."""
        while waiting and waiting[0].time_ms <= passed:
            by = int(np.searchsorted(self._passed, waiting[0].time_ms)) - 1
            self._release(max(by, 0) if len(self._events) else -1, row, NO_WATERMARK, waiting)

    def _release(self, by: int, row: int, passed: int, waiting: list[HeldEvent]) -> None:
        """Let the earliest go, by the event `by` of the slice, where the release watermark had passed `passed`."""
        event = waiting.pop(0)
        self._bytes[row] -= event.size
        self._released.append((by, row, max(event.time_ms, passed), event))

    def _is_too_much(self, row: int, waiting: list[HeldEvent]) -> bool:
        return len(waiting) > self._rules.reorder_events or self._bytes[row] > MAX_HELD_BYTES

    def _ordered(self) -> Ordered:
        self._released.sort(key=lambda released: released[0])  # stable: each session's order stays
        index, session, watermarks, events = zip(*self._released, strict=True) if self._released else ((), (), (), ())
        by = np.array(index, np.int32)
        held = self._held.copy()
        for row, waiting in self._waiting.items():
            held[row] = pack_held([event.shortened() for event in waiting])
        return Ordered(
            _as_columns(self._events, by, session, events), np.array(watermarks, np.int64), self._passed[by + 1],
            int(self._passed[-1]) + self._rules.reorder_ms, int(self._passed[-1]), held, self._early,
        )  # fmt: skip


def _order(event: HeldEvent) -> tuple[int, int]:
    return event.time_ms, event.offset


def _each(events: Events) -> list[HeldEvent]:
    """The events one by one."""
    messages = [None] * len(events) if events.messages is None else events.messages
    texts = events.texts
    tokens = list(map(list, zip(*texts, strict=True))) if texts else [[] for _ in range(len(events))]
    columns = events.time_ms.tolist(), events.offsets.tolist(), events.ends.tolist(), tokens, messages
    return list(map(HeldEvent, *columns, events.numbers.tolist()))


def _as_columns(given: Events, index: NDArray[np.int32], session: Sequence[int], events: Sequence[HeldEvent]) -> Events:
    """The released events in the given ones' place."""
    return replace(
        given,
        index=given.index[index] if len(given) else index,
        offsets=np.array([e.offset for e in events], np.int64),
        time_ms=np.array([e.time_ms for e in events], np.int64),
        session=np.array(session, np.int32),
        **given.columns_of([[e.tokens[f] for e in events] for f in range(len(given.texts))]),
        ends=np.array([e.is_end for e in events], np.bool_),
        messages=None if given.messages is None else [e.message for e in events],
        numbers=np.array([e.numbers for e in events], np.float64).reshape(len(events), given.numbers.shape[1]),
    )
