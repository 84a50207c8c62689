"""Whether a stream's fields still look as they did in training: missing, of a wrong type, or full of unknown values.

Records are counted in blocks of `BLOCK`, in the order of offsets, those set aside among them. So what is found, and
where, depends on the records alone: not on slices, restarts or who reads the partition. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from features.errors import BadTimeError, MissingSessionError, RecordError
from features.events import Events
from features.paths import parse_path
from features.tokens import MISSING, OOV, RESERVED

BLOCK = 256  # records between two looks
WINDOW = 4  # blocks that are judged together
FIRST = 1_000  # records after which, before any training, a field that none of them had is called misspelt
KINDS = ("missing", "type", "unknown")
_MISSING, _TYPE, _UNKNOWN = range(3)
_SIZE = BLOCK * WINDOW
_FALSE_ALARMS = 1e-9  # of one judgement of one field
_FLOOR = 0.05  # a smaller share of the records, above what is usual, concerns nobody
_VALUE_CHARACTERS = 64

Counts = tuple[tuple[int, ...], ...]  # one row a kind, one column a field


@dataclass(frozen=True)
class Block:
    """Counts of one block's records; `first_ms` is the time of its first valid one, `events` the number of these."""

    counts: Counts
    events: int = 0
    first_ms: int | None = None


@dataclass(frozen=True)
class Open:
    """A drift that has begun: since when, by event time, and in how many records."""

    since_ms: int | None
    records: int


@dataclass(frozen=True)
class SchemaState:
    """What a partition remembers of its fields; plain numbers and few texts, so that it can be saved as JSON.

    Attributes
    ----------
    judged
        Whether a training tells what is usual; if not, the block is one of `FIRST` records, and `looked` its end.
    block, seen
        The block under way, and how many records it has.
    recent
        The last blocks before it, `WINDOW` at most.
    values
        Of each field the candidate for the most frequent unknown value of the block, by how much it leads.
    drifts
        Those that have begun and not ended, by `KIND/FIELD`.
    """

    judged: bool
    block: Block
    seen: int = 0
    recent: tuple[Block, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    drifts: dict[str, Open] = field(default_factory=dict)
    looked: bool = False

    def without_values(self) -> SchemaState:
        """The same with no value of any record."""
        return replace(self, values=(("", 0),) * len(self.values))


@dataclass(frozen=True)
class FieldDrift:
    """A field began to differ from training, or no longer does.

    Attributes
    ----------
    kind
        missing, type or unknown.
    offset
        Of the record that ended the block in which this was seen.
    affected, of
        Records with it, of how many last ones.
    usual
        The highest share in training; None where there was none yet, and no record has had the field.
    records
        Those with it since it began.
    value
        An unknown value that at least three in four of the block's unknown ones are; None where there is none, or
        where it may not be told.
    """

    kind: str
    field: str
    has_begun: bool
    offset: int
    since_ms: int | None
    affected: int
    of: int
    records: int
    usual: float | None
    value: str | None = None


@dataclass(frozen=True)
class Watched:
    """What one slice gave: records per field that lacked it or had it of a wrong type, and what began or ended."""

    missing: dict[str, int] = field(default_factory=dict)
    wrong_type: dict[str, int] = field(default_factory=dict)
    drifts: tuple[FieldDrift, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """Of n records in order: (3, n, W) what holds for which field; (n,) offsets, times and rows, -1 if set aside."""

    holds: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class SchemaWatch:
    """Counts and judges the fields of a stream.

    A drift begins when, of the last 1,024 records, more are affected than could be by chance: by Chernoff's bound less
    than one judgement in 1e9 would say so if each record were affected on its own, with the highest share that any
    1,024 records of the training had, and by at least 5 of 100 records more than that share. It ends halfway back.
    Each 256 records are judged. It fails where records are affected in longer runs than training had: these are
    drifts, and are called so.

    Attributes
    ----------
    tokens, numbers
        The token fields and the number fields, in their order.
    session, time
        Paths of the session, one or several, and of the time; "@key" and None for none.
    usual
        By `KIND/FIELD` the highest share in training; None before there was one.
    tells_values
        Whether values may be kept and told: not where the stream is masked.

    References
    ----------
    Chernoff 1952, doi:10.1214/aoms/1177729330, for binomial tails; Boyer and Moore 1991,
    doi:10.1007/978-94-011-3488-0_5, for the candidate of the most frequent value.
    """

    tokens: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    session: tuple[str, ...] = ("@key",)
    time: str | None = None
    usual: Mapping[str, float] | None = None
    tells_values: bool = True

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Token fields first, then numbers, then session and time."""
        others = [path for path in (*self.session, self.time) if path not in (None, "@key")]
        return tuple(dict.fromkeys([*self.tokens, *self.numbers, *(path for path in others if path is not None)]))

    @cached_property
    def _dotted(self) -> list[str]:
        return [".".join(map(str, parse_path(name))) + "." for name in self.fields]

    @cached_property
    def _bounds(self) -> dict[tuple[int, int], tuple[float, int, float]]:
        """By kind and field the usual share, from how many records of a window on it drifts, and down to how many."""
        usual = self.usual or {}
        shares = {
            (kind, f): usual[key]
            for kind, f in np.ndindex(len(KINDS), len(self.fields))
            if (key := _key(kind, self.fields[f])) in usual
        }
        limits = {at: (share, drifts_from(share)) for at, share in shares.items()}
        return {at: (share, limit, (share * _SIZE + limit) / 2) for at, (share, limit) in limits.items()}

    def start(self) -> SchemaState:
        """Before the first record."""
        return SchemaState(self.usual is not None, self._empty, values=(("", 0),) * len(self.tokens))

    @cached_property
    def _empty(self) -> Block:
        return Block(((0,) * len(self.fields),) * len(KINDS))

    def update_many(
        self, state: SchemaState | None, events: Events, ids: NDArray[np.int32]
    ) -> tuple[SchemaState, Watched]:
        """Count a slice's records, valid and set aside, and judge each block that they end.

        Parameters
        ----------
        state
            None before the first record.
        events
            In offset order.
        ids
            (n, F) token ids of the valid ones; without a training their unknown tokens are not counted.
        """
        state = self.start() if state is None else state
        if state.judged != (self.usual is not None):  # the first bundle, or none any more: a new block begins
            state = replace(self.start(), drifts=state.drifts)
        facts, found, at = self._facts(events, ids), list[FieldDrift](), 0
        while at < len(facts.offsets) and not (state.looked and not state.judged):
            size = BLOCK if state.judged else FIRST
            end = min(len(facts.offsets), at + size - state.seen)
            state = self._count(state, facts, at, end, events)
            if state.seen == size:
                state, drifts = (self._judge if state.judged else self._look)(state, int(facts.offsets[end - 1]))
                found += drifts
            at = end
        counts = facts.holds.sum(axis=1).tolist()
        missing, wrong_type = (
            {name: n for name, n in zip(self.fields, counts[kind], strict=True) if n} for kind in (_MISSING, _TYPE)
        )
        return state, Watched(missing, wrong_type, tuple(found))

    def learn(self, parts: Sequence[tuple[Events, NDArray[np.int32], NDArray[np.bool_]]]) -> dict[str, float]:
        """What is usual, from a history.

        Parameters
        ----------
        parts
            Of each partition its events, their ids, and (n,) which of them taught the model nothing: unknown tokens
            are counted among these, since the others' are all known.

        Returns
        -------
        usual
            By `KIND/FIELD` the highest share of any `WINDOW` blocks of a partition, and at least the share of all.
        """
        highest = np.zeros((len(KINDS), len(self.fields)))
        totals, sizes = np.zeros_like(highest), np.zeros((len(KINDS), 1))
        for events, ids, held_back in parts:
            facts = self._facts(events, ids)
            taught = np.ones(len(facts.offsets), np.bool_)
            taught[facts.row >= 0] = ~held_back[facts.row[facts.row >= 0]]
            for kind in range(len(KINDS)):
                holds = facts.holds[kind][~taught] if kind == _UNKNOWN else facts.holds[kind]
                totals[kind] += holds.sum(axis=0)
                sizes[kind] += len(holds)
                highest[kind] = np.maximum(highest[kind], _highest_share(holds))
        highest = np.maximum(highest, totals / np.maximum(sizes, 1))
        return {
            _key(kind, name): float(highest[kind, f])
            for kind in range(len(KINDS)) for f, name in enumerate(self.fields)
            if kind != _UNKNOWN or f < len(self.tokens)
        }  # fmt: skip

    def _facts(self, events: Events, ids: NDArray[np.int32]) -> _Facts:
        n, r = len(events), len(events.rejects)
        index = np.concatenate([events.index, np.array([reject.index for reject in events.rejects], np.int32)])
        holds = np.zeros((len(KINDS), n + r, len(self.fields)), np.bool_)
        tokens, columns = len(self.tokens), len(self.tokens) + len(self.numbers)
        holds[_MISSING, :n, :tokens] = ids == MISSING
        holds[_MISSING, :n, tokens:columns] = np.isnan(
            events.numbers[:, : len(self.numbers)]
        )  # no line must have parameters
        if self.usual is not None:
            holds[_UNKNOWN, :n, :tokens] = ids == OOV
        for i, reject in enumerate(events.rejects, n):
            for kind, f in self._blamed(reject.error):
                holds[kind, i, f] = True
        order = np.argsort(index, kind="stable")
        offsets = np.concatenate([events.offsets, np.array([reject.offset for reject in events.rejects], np.int64)])
        time_ms = np.concatenate([events.time_ms, np.full(r, -1, np.int64)])
        row = np.concatenate([np.arange(n, dtype=np.int64), np.full(r, -1, np.int64)])
        return _Facts(holds[:, order], offsets[order], time_ms[order], row[order])

    def _blamed(self, error: RecordError) -> Iterator[tuple[int, int]]:
        """Kind and field of what an error says; of an object of a wrong type, all fields that should be in it."""
        if isinstance(error, MissingSessionError):
            yield from ((_MISSING, f) for f, name in enumerate(self.fields) if name in self.session)
        elif isinstance(error, BadTimeError):
            yield from ((_TYPE, f) for f, name in enumerate(self.fields) if name == self.time)
        elif error.at:
            yield from ((_TYPE, f) for f, dotted in enumerate(self._dotted) if dotted.startswith(error.at + "."))

    def _count(self, state: SchemaState, facts: _Facts, low: int, high: int, events: Events) -> SchemaState:
        """The state with some more records of its block."""
        holds, valid = facts.holds[:, low:high], facts.row[low:high] >= 0
        block = state.block
        added = holds.sum(axis=1).tolist()
        counts = tuple(
            tuple(a + b for a, b in zip(had, more, strict=True)) for had, more in zip(block.counts, added, strict=True)
        )
        first_ms = block.first_ms
        if first_ms is None and valid.any():
            first_ms = int(facts.time_ms[low + int(np.argmax(valid))])
        values = state.values
        if self.tells_values and holds[_UNKNOWN].any():
            values = tuple(
                _leading(value, [events.tokens[f][i] for i in facts.row[low:high][holds[_UNKNOWN, :, f]].tolist()])
                # A session's name is kept with the session alone, so that it can be deleted.
                if self.tokens[f] not in self.session else value
                for f, value in enumerate(values)
            )  # fmt: skip
        block = Block(counts, block.events + int(valid.sum()), first_ms)
        return replace(state, block=block, seen=state.seen + high - low, values=values)

    def _judge(self, state: SchemaState, offset: int) -> tuple[SchemaState, list[FieldDrift]]:
        """The last blocks against what is usual."""
        window = (*state.recent, state.block)[-WINDOW:]
        drifts, found = dict(state.drifts), list[FieldDrift]()
        for (kind, f), (usual, limit, back) in self._bounds.items():
            key, last = _key(kind, self.fields[f]), state.block.counts[kind][f]
            affected = sum(block.counts[kind][f] for block in window)
            has_begun = key not in drifts and affected >= limit
            if key in drifts:
                drifts[key] = Open(drifts[key].since_ms, drifts[key].records + last)
            elif has_begun:
                unusual = (b.first_ms for b in window if b.counts[kind][f] > usual * BLOCK and b.first_ms is not None)
                drifts[key] = Open(next(unusual, None), affected)
            if has_begun or (key in drifts and affected <= back):
                found.append(
                    FieldDrift(
                        KINDS[kind], self.fields[f], has_begun, offset, drifts[key].since_ms, affected,
                        BLOCK * len(window), drifts[key].records, usual,
                        _told(state.values[f], last) if has_begun and kind == _UNKNOWN else None,
                    )
                )  # fmt: skip
            if key in drifts and not has_begun and affected <= back:
                del drifts[key]
        return replace(
            state, block=self._empty, seen=0, recent=window[1:] if len(window) == WINDOW else window, drifts=drifts,
            values=self.start().values,
        ), found  # fmt: skip

    def _look(self, state: SchemaState, offset: int) -> tuple[SchemaState, list[FieldDrift]]:
        """After the first records, before any training: which fields none of them had."""
        block, drifts, found = state.block, dict(state.drifts), list[FieldDrift]()
        for f, name in enumerate(self.fields):
            missing, wrong_type = block.counts[_MISSING][f], block.counts[_TYPE][f]
            has_it = block.events - missing if f < len(self.tokens) + len(self.numbers) else block.events
            if missing and has_it <= 0 and not wrong_type:
                key = _key(_MISSING, name)
                drifts[key] = Open(block.first_ms, missing)
                found.append(
                    FieldDrift(KINDS[_MISSING], name, True, offset, block.first_ms, missing, FIRST, missing, None)
                )
        return replace(state, block=self._empty, seen=0, drifts=drifts, looked=True), found


def drifts_from(share: float) -> int:
    """Of how many records in 1,024 on a share is above `share` by more than chance; beyond 1,024 where none is.

    >>> drifts_from(0.0), drifts_from(1.0)
    (52, 1025)
    """
    least = math.floor((share + _FLOOR) * _SIZE) + 1
    wanted = -math.log(_FALSE_ALARMS)
    return next((c for c in range(least, _SIZE + 1) if _SIZE * _divergence(c / _SIZE, share) >= wanted), _SIZE + 1)


def _divergence(found: float, expected: float) -> float:
    """Kullback and Leibler's, in nats, of two shares, found > expected."""
    if expected <= 0.0:
        return math.inf
    rest = 0.0 if found >= 1.0 else (1 - found) * math.log((1 - found) / (1 - expected))
    return found * math.log(found / expected) + rest


def _highest_share(holds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(W,) the highest share of (n, W) in any `WINDOW` blocks that follow each other; 0 where there are fewer."""
    blocks = len(holds) // BLOCK
    if blocks < WINDOW:
        return np.zeros(holds.shape[1])
    sums = holds[: blocks * BLOCK].reshape(blocks, BLOCK, -1).sum(axis=1).cumsum(axis=0)
    sums = np.concatenate([np.zeros((1, sums.shape[1]), sums.dtype), sums])
    highest: NDArray[np.float64] = (sums[WINDOW:] - sums[:-WINDOW]).max(axis=0) / _SIZE
    return highest


def _key(kind: int, name: str) -> str:
    return f"{KINDS[kind]}/{name}"


def _leading(candidate: tuple[str, int], values: Sequence[str | None]) -> tuple[str, int]:
    """The candidate after some more values: each other value takes one from its lead."""
    text, lead = candidate
    for value in values:
        short = (value or "")[:_VALUE_CHARACTERS]
        if lead == 0:
            text, lead = short, 1
        else:
            lead += 1 if short == text else -1
    return text, lead


def _told(candidate: tuple[str, int], unknown: int) -> str | None:
    """The candidate where it leads by half of all: then at least three in four are it."""
    text, lead = candidate
    return text if unknown and 2 * lead >= unknown and text not in RESERVED else None
