"""Events: the valid records of one partition as columns, and what was set aside beside them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

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
    offset: int = -1


_COUNTS = ("tombstones", "infinite", "without_time", "ahead")  # of a whole slice: its first piece has them


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
    numbers
        (n, N) float64, one column for each number field; NaN where the number is missing, never infinite.
    infinite
        How many numbers were infinite, and so count as missing.
    next_offset
        The offset after the last record given, valid or not; None if none was given.
    ids
        (n,) stable hashes of the events' ids (features/duplicates.py), where the stream has such; else None.
    windows
        (n,) int64: of events that stand for windows of samples, when each window ends; else None.
    segments
        n texts (or None) of the field that names an event's segment, where the stream has one; else None.
    without_time, ahead
        How many events have Kafka's timestamp because their own time is absent, or was too far ahead of it.
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
    numbers: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    infinite: int = 0
    ids: NDArray[np.uint64] | None = None
    without_time: int = 0
    ahead: int = 0
    windows: NDArray[np.int64] | None = None
    segments: list[str | None] | None = None

    def __post_init__(self) -> None:
        if len(self.numbers) != len(self.offsets):  # where nobody gave any
            object.__setattr__(self, "numbers", np.empty((len(self.offsets), 0)))

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def texts(self) -> list[list[str | None]]:
        """What events say in columns of text: tokens, and after them segments, where the stream has such."""
        return self.tokens if self.segments is None else [*self.tokens, self.segments]

    def columns_of(self, texts: list[list[str | None]]) -> dict[str, Any]:
        """Columns like `texts`, by the names they have here."""
        return {"tokens": texts} if self.segments is None else {"tokens": texts[:-1], "segments": texts[-1]}

    @classmethod
    def concatenate(cls, pieces: Sequence[Events]) -> Events:
        """One partition's events that were read piece by piece, as if they had been read at once."""
        numbers: dict[str, int] = {}
        session = np.concatenate([_numbered(piece, numbers) for piece in pieces])
        before = np.cumsum([0, *(piece.given for piece in pieces[:-1])]).tolist()  # records before each piece
        index = [piece.index + np.int32(n) for piece, n in zip(pieces, before, strict=True)]
        rejects = [replace(r, index=r.index + n) for p, n in zip(pieces, before, strict=True) for r in p.rejects]
        has_messages, has_ids = pieces[0].messages is not None, pieces[0].ids is not None
        has_segments = pieces[0].segments is not None

        def joined(name: str) -> Any:
            return np.concatenate([getattr(piece, name) for piece in pieces])

        return replace(
            pieces[-1],
            index=np.concatenate(index), offsets=joined("offsets"), time_ms=joined("time_ms"), session=session,
            sessions=list(numbers), ends=joined("ends"), rejects=rejects, numbers=joined("numbers"),
            tokens=[list(chain.from_iterable(columns)) for columns in zip(*(p.tokens for p in pieces), strict=True)],
            messages=list(chain.from_iterable(p.messages or () for p in pieces)) if has_messages else None,
            segments=list(chain.from_iterable(p.segments or () for p in pieces)) if has_segments else None,
            ids=joined("ids") if has_ids else None,
            **{name: sum(getattr(piece, name) for piece in pieces) for name in _COUNTS},
        )  # fmt: skip

    @property
    def given(self) -> int:
        """How many records these were read from."""
        return len(self) + len(self.rejects) + self.tombstones

    def take(self, chosen: NDArray[np.intp]) -> Events:
        """Some of the events, in the order given; all else as it is."""
        at = chosen.tolist()
        return replace(
            self, index=self.index[chosen], offsets=self.offsets[chosen], time_ms=self.time_ms[chosen],
            session=self.session[chosen], **self.columns_of([[column[i] for i in at] for column in self.texts]),
            ends=self.ends[chosen], messages=None if self.messages is None else [self.messages[i] for i in at],
            ids=None if self.ids is None else self.ids[chosen], numbers=self.numbers[chosen],
            windows=None if self.windows is None else self.windows[chosen],
        )  # fmt: skip

    def pieces(self, max_sessions: int) -> Iterator[Events]:
        """Cut into runs of events with at most `max_sessions` distinct sessions each, with the rejects among them."""
        if len(self.sessions) <= max_sessions:
            yield self
            return
        low, seen = 0, set[int]()
        rejects, is_first = deque(self.rejects), True
        for i, number in enumerate(self.session.tolist()):
            if number not in seen and len(seen) == max_sessions:
                before = []
                while rejects and rejects[0].index < self.index[i]:
                    before.append(rejects.popleft())
                yield self._piece(low, i, before, is_first=is_first)
                low, seen, is_first = i, set(), False
            seen.add(number)
        yield self._piece(low, len(self), list(rejects), is_first=is_first)

    def cut(self, at: int) -> tuple[Events, Events]:
        """What comes before event `at`, with the rejects there, and all from it on."""
        before = [reject for reject in self.rejects if reject.index < self.index[at]]
        after = self.rejects[len(before) :]
        return self._piece(0, at, before, is_first=True), self._piece(at, len(self), after, is_first=False)

    def _piece(self, low: int, high: int, rejects: list[Reject], *, is_first: bool) -> Events:
        numbers: dict[int, int] = {}
        session = [numbers.setdefault(s, len(numbers)) for s in self.session[low:high].tolist()]
        counts: dict[str, Any] = {} if is_first else dict.fromkeys(_COUNTS, 0)
        return replace(
            self.take(np.arange(low, high)),
            session=np.array(session, np.int32),
            sessions=[self.sessions[s] for s in numbers],
            rejects=rejects,
            next_offset=self.next_offset if high == len(self) else int(self.offsets[high]),
            **counts,
        )


def _numbered(piece: Events, numbers: dict[str, int]) -> NDArray[np.int32]:
    """Sessions of a piece by numbers that all pieces share, which are added to."""
    names = [numbers.setdefault(name, len(numbers)) for name in piece.sessions]
    return np.array(names, np.int32)[piece.session]
