"""Events: the valid records of one partition as columns, and what was set aside beside them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from features.errors import RecordError


class Record(Protocol):
    """What we read of a Kafka record; aiokafka's, confluent's wrapped one and a line of a file all fit."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102


@dataclass(frozen=True)
class Reject:
    """A record that cannot be scored: its position in the slice, and why; if private, nothing else may be shown."""

    index: int
    error: RecordError
    is_private: bool = False


@dataclass(frozen=True)
class Events:
    """The valid records of one partition, in offset order, as columns.

    Attributes
    ----------
    index
        (n,) int32: each event's position among the records given.
    offsets, time_ms
        (n,) int64.
    session
        (n,) int32: position of the event's session in `sessions`.
    sessions
        Distinct session names in order of first appearance.
    tokens
        One list of n texts (or None where the field is absent) for each token field.
    ends
        (n,) bool: the event matches `end_when`.
    rejects
        Records set aside.
    tombstones
        How many records had no value.
    messages
        n texts (or None) of log lines as they came, where the last token column holds their templates; else None.
    next_offset
        The offset after the last record given, valid or not; None if none was given.
    """

    index: NDArray[np.int32]
    offsets: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    session: NDArray[np.int32]
    sessions: list[str]
    tokens: list[list[str | None]]
    ends: NDArray[np.bool_]
    rejects: list[Reject]
    tombstones: int
    next_offset: int | None
    messages: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def pieces(self, max_sessions: int) -> Iterator[Events]:
        """Cut into runs of events with at most `max_sessions` distinct sessions each, with the rejects among them."""
        if len(self.sessions) <= max_sessions:
            yield self
            return
        low, seen = 0, set[int]()
        rejects, tombstones = deque(self.rejects), self.tombstones
        for i, number in enumerate(self.session.tolist()):
            if number not in seen and len(seen) == max_sessions:
                before = []
                while rejects and rejects[0].index < self.index[i]:
                    before.append(rejects.popleft())
                yield self._piece(low, i, before, tombstones)
                low, seen, tombstones = i, set(), 0
            seen.add(number)
        yield self._piece(low, len(self), list(rejects), tombstones)

    def _piece(self, low: int, high: int, rejects: list[Reject], tombstones: int) -> Events:
        part = slice(low, high)
        numbers: dict[int, int] = {}
        session = [numbers.setdefault(s, len(numbers)) for s in self.session[part].tolist()]
        return Events(
            self.index[part], self.offsets[part], self.time_ms[part], np.array(session, np.int32),
            [self.sessions[s] for s in numbers], [column[part] for column in self.tokens], self.ends[part],
            rejects, tombstones, self.next_offset if high == len(self) else int(self.offsets[high]),
            None if self.messages is None else self.messages[part],
        )  # fmt: skip
