"""A history as training sees it: the events of each partition in their order, and the sessions they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.intake import take_in, without_duplicates
from detectors.parts import Parts
from detectors.rows import PartitionState, SessionRows
from features.events import Events
from features.measures import measure
from features.sessions import END_INPUT, Walk, log_gaps, number_sessions, walk_sessions
from models.errors import UnsuitableDataError
from models.sequences import Sequence, Sequences

MIN_SESSIONS = 100
# Where sessions are fewer, long ones are cut into pieces, each of which the model learns as a session of its own.
PIECES, LEAST_PIECE = 1_000, 32

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
    history = _sessionise(arrived, parts)
    if len(history.first_ms) < MIN_SESSIONS:  # hosts, say, whose sessions never end
        history = _sessionise(arrived, parts, max(LEAST_PIECE, sum(map(len, arrived)) // PIECES))
    if len(history.first_ms) < MIN_SESSIONS:
        message = (
            f"the history holds {len(history.first_ms)} sessions; at least {MIN_SESSIONS} are needed to learn from and "
            f"to calibrate on (a long one counts as several, of {LEAST_PIECE} events): give a longer time span, or "
            "check session.by and session.gap"
        )
        raise UnsuitableDataError(message)
    return history


def _sessionise(arrived: list[Events], parts: Parts, longest: int = 2**31 - 1) -> History:
    """Walk each partition. `longest` as `number_sessions` has it."""
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


def sequences(history: History, chosen: Chosen, parts: Parts) -> Sequences:
    """The chosen sessions, as the model takes them."""
    return Sequences.of(s for partition in history.partitions for s in _sequences(partition, chosen, parts))


def _sequences(partition: Partition, chosen: Chosen, parts: Parts) -> Iterator[Sequence]:
    walk, session = partition.walk, partition.session
    ids, gaps = parts.ids(partition.events, partition.measures), log_gaps(walk.gap_ms)
    seen_end = set(session[walk.of_ends[walk.kind[walk.of_ends] != END_INPUT]].tolist())
    for number, records in _by_session(partition):
        if chosen[number]:
            yield Sequence(ids[records], gaps[records], number in seen_end)


def _by_session(partition: Partition) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Each session's number and records, in order."""
    steps, session = partition.walk.steps, partition.session
    steps = steps[np.argsort(session[steps], kind="stable")]
    numbers, starts = np.unique(session[steps], return_index=True)
    yield from zip(numbers.tolist(), np.split(partition.walk.record[steps], starts[1:]), strict=True)


def measured(history: History, chosen: Chosen) -> list[NDArray[np.float32]]:
    """(T, N) numbers of each chosen session, in order."""
    found = []
    for partition in history.partitions:
        for number, records in _by_session(partition):
            if chosen[number]:
                found.append(partition.measures[records])
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
    return {
        "records": sum(map(len, events)), "sessions": len(history.first_ms),
        "first_ms": int(min(e.time_ms.min() for e in events)),
        "last_ms": int(max(e.time_ms.max() for e in events)),
        "sha256": fingerprint.hexdigest(),
    }  # fmt: skip
