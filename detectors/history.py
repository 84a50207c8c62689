"""A history as training sees it: the events of each partition in their order, and the sessions they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.intake import take_in, without_duplicates
from detectors.parts import Parts
from detectors.rows import PartitionState, SessionRows
from features.events import Events
from features.measures import measure
from features.sessions import END_INPUT, Walk, log_gaps, number_sessions, walk_sessions
from models.errors import UnsuitableDataError
from models.scratch import IN_MEMORY, Scratch
from models.sequences import Sequences
from models.values import Values

MIN_SESSIONS = 100
# Where sessions are fewer, long ones are cut into pieces, each of which the model learns as a session of its own.
PIECES, LEAST_PIECE = 1_000, 32
_AT_ONCE = 100_000  # events turned into ids
Chosen = NDArray[np.bool_]  # (S,) which sessions


@dataclass(frozen=True)
class Partition:
    """One partition's events as they came and in order, with the session of each operation over all partitions."""

    arrived: Events
    events: Events
    measures: NDArray[np.float32]
    walk: Walk
    session: NDArray[np.int32]

    def records(self, chosen: Chosen) -> NDArray[np.int32]:
        """Events of the chosen sessions, but for late ones."""
        steps = self.walk.steps
        return self.walk.record[steps[chosen[self.session[steps]]]]


@dataclass(frozen=True)
class History:
    """Partitions, and the time of the first event of each of their S sessions, (S,) int64."""

    partitions: list[Partition]
    first_ms: NDArray[np.int64]

    @property
    def ended(self) -> int:
        """Sessions that were seen to end."""
        return sum(int((p.walk.kind[p.walk.of_ends] != END_INPUT).sum()) for p in self.partitions)

    @property
    def span_ms(self) -> int:
        """Between the first events of the first session and of the last."""
        return int(self.first_ms.max() - self.first_ms.min())


def read_history(arrived: list[Events], parts: Parts) -> History:
    """Find the sessions in the events of each partition.

    Raises
    ------
    UnsuitableDataError
        There are too few sessions.
    """
    arrived = [events for events in arrived if len(events)]
    history = find_sessions(arrived, parts)
    if len(history.first_ms) < MIN_SESSIONS:  # hosts, say, whose sessions never end
        history = find_sessions(arrived, parts, max(LEAST_PIECE, sum(map(len, arrived)) // PIECES))
    if len(history.first_ms) < MIN_SESSIONS:
        message = (
            f"the history holds {len(history.first_ms)} sessions; at least {MIN_SESSIONS} are needed to learn from and "
            f"to calibrate on (a long one counts as several, of {LEAST_PIECE} events): give a longer time span, or "
            "check session.by and session.gap"
        )
        raise UnsuitableDataError(message)
    return history


def find_sessions(arrived: list[Events], parts: Parts, longest: int = 2**31 - 1) -> History:
    """Walk each partition's events. `longest` as `number_sessions` has it."""
    partitions: list[Partition] = []
    first_ms: list[NDArray[np.int64]] = []
    opened = 0
    for given in arrived:
        events, _, _ = without_duplicates(given, PartitionState(0), parts)
        rows = SessionRows.empty(len(events.sessions), parts.shape)
        ordered = take_in(events, rows, PartitionState(0), parts, close_all=True).ordered
        walk = walk_sessions(ordered, rows.clocks, parts.rules, close_all=True)
        numbers, begins = number_sessions(walk, longest)
        measures, _, _ = measure(ordered.events, walk, rows.counter_value, rows.counter_ms, parts.measures)
        partitions.append(Partition(events, ordered.events, measures, walk, numbers + opened))
        first_ms.append(ordered.events.time_ms[begins])
        opened += len(begins)
    return History(partitions, np.concatenate(first_ms) if first_ms else np.empty(0, np.int64))


def sequences(
    history: History, chosen: Chosen, parts: Parts, scratch: Scratch = IN_MEMORY, values: Values | None = None
) -> Sequences:
    """The chosen sessions, as the model takes them: partition by partition, in order of their first events.

    With the numbers in spreads, where `values` says which.
    """
    found = [_chosen_steps(partition, chosen) for partition in history.partitions]
    events, sessions = sum(len(f.records) for f in found), [f.numbers for f in found]
    tokens = scratch.empty((events, parts.columns), np.int32)
    log_gap = scratch.empty((events,), np.float32)
    scaled = None if values is None else scratch.empty((events, values.channels), np.float32)
    low = 0
    for partition, steps in zip(history.partitions, found, strict=True):
        part = slice(low, low + len(steps.records))
        if values is not None and scaled is not None:
            scaled[part] = values.in_spreads(partition.measures[steps.records])
        _fill(tokens[part], log_gap[part], partition, steps.records, parts)
        low = part.stop
    lengths = np.concatenate([f.lengths for f in found])
    seen_end = np.zeros(len(chosen), np.bool_)
    for partition in history.partitions:
        ends = partition.walk.of_ends
        seen_end[partition.session[ends[partition.walk.kind[ends] != END_INPUT]]] = True
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Sequences(tokens, log_gap, starts, seen_end[np.concatenate(sessions)], scaled)


class _Steps(NamedTuple):
    """(n,) events of the chosen sessions, session by session; (S,) numbers of these sessions, and their lengths."""

    records: NDArray[np.int32]
    numbers: NDArray[np.int32]
    lengths: NDArray[np.int64]


def _chosen_steps(partition: Partition, chosen: Chosen) -> _Steps:
    steps = partition.walk.steps
    steps = steps[chosen[partition.session[steps]]]
    steps = steps[np.argsort(partition.session[steps], kind="stable")]  # session by session, each in order
    return _Steps(partition.walk.record[steps], *np.unique(partition.session[steps], return_counts=True))


def _fill(
    tokens: NDArray[np.int32], log_gap: NDArray[np.float32], partition: Partition, records: NDArray[np.int32],
    parts: Parts,
) -> None:  # fmt: skip
    """Write what the model is given of some events to where they belong; some at a time, as they lie in memory."""
    log_gap[:] = log_gaps(partition.walk.gap_ms[records])
    order = np.argsort(records, kind="stable")
    for low in range(0, len(order), _AT_ONCE):
        at = order[low : low + _AT_ONCE]
        tokens[at] = parts.ids(partition.events.take(records[at].astype(np.intp)), partition.measures[records[at]])


def measured(history: History, chosen: Chosen) -> list[NDArray[np.float32]]:
    """(T, N) numbers of each chosen session, in order."""
    found: list[NDArray[np.float32]] = []
    for partition in history.partitions:
        steps = _chosen_steps(partition, chosen)
        found += np.split(partition.measures[steps.records], np.cumsum(steps.lengths)[:-1])
    return found


def data_span(history: History) -> dict[str, Any]:
    """What was learned from, with a fingerprint that changes when any event's session, time, token or number does."""
    events = [partition.events for partition in history.partitions]
    fingerprint = sha256()
    for of_partition in events:
        columns = (of_partition.time_ms, of_partition.session, of_partition.numbers)
        fingerprint.update(b"".join(column.tobytes() for column in columns))
        for column in of_partition.tokens:
            fingerprint.update("\0".join("" if t is None else t for t in column).encode())
    return extent(history) | {"sha256": fingerprint.hexdigest()}


def extent(history: History) -> dict[str, Any]:
    """How much was learned from, and over which time."""
    events = [partition.events for partition in history.partitions]
    return {
        "records": sum(map(len, events)), "sessions": len(history.first_ms), "partitions": len(events),
        "first_ms": int(min(e.time_ms.min() for e in events)),
        "last_ms": int(max(e.time_ms.max() for e in events)),
    }  # fmt: skip
