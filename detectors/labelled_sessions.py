"""Sessions that people called anomalies are kept out of what is learned as normal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.history import History, Partition, read_history
from detectors.parts import Parts
from features.events import Events
from features.sessions import LATE, STEP

Find = Callable[[list[Events], Parts], History]


class Moment(NamedTuple):
    """A time in a session, by its name: a record's, or the latest of a session."""

    session: str
    time_ms: int


class LeftOut(NamedTuple):
    """How many sessions and records of a history were left out, and how many labels name no record in it."""

    sessions: int = 0
    records: int = 0
    unknown: int = 0


def leave_out(
    arrived: Sequence[Events], anomalies: Sequence[Collection[int | Moment]], parts: Parts, find: Find = read_history
) -> tuple[list[Events], LeftOut]:
    """A history without each session that holds a labelled record; long ones go piece by piece.

    Event times decide where sessions end, so the others stay as they were; only where events come out of order may an
    odd one end otherwise. All that is learned of what is left, from templates to calibration, has not seen the rest.

    Parameters
    ----------
    arrived
        The events of each partition, in offset order.
    anomalies
        Of each partition the records, or the last records of sessions, that were called anomalies, by offset or moment.
    find
        What finds the sessions.

    Raises
    ------
    UnsuitableDataError
        There are too few sessions, with what is labelled.
    """
    left = list(arrived)
    if not any(anomalies):
        return left, LeftOut()
    filled = [number for number, events in enumerate(arrived) if len(events)]
    history = find([arrived[number] for number in filled], parts)
    sessions = records = 0
    unknown = sum(len(labelled) for number, labelled in enumerate(anomalies) if number not in filled)
    for number, partition in zip(filled, history.partitions, strict=True):
        offsets, unfound = _offsets_of(partition.events, anomalies[number])
        bad = _sessions_with(partition, offsets)
        keeps = ~_of_sessions(partition, bad, parts)
        # Duplicates are gone by now: one of a record that is left out would come to life without it.
        left[number] = partition.arrived.take(np.flatnonzero(keeps))
        sessions, records = sessions + len(bad), records + int((~keeps).sum())
        unknown += unfound
    return left, LeftOut(sessions, records, unknown)


def offsets_at(events: Events, moments: Collection[Moment]) -> dict[Moment, list[int]]:
    """Of those moments that a partition has, the offsets of the session's events at that time."""
    wanted, names = set(moments), {moment.session for moment in moments}
    numbers = [number for number, name in enumerate(events.sessions) if name in names]
    found: dict[Moment, list[int]] = {}
    for at in np.flatnonzero(np.isin(events.session, numbers)).tolist():
        moment = Moment(events.sessions[events.session[at]], int(events.time_ms[at]))
        if moment in wanted:
            found.setdefault(moment, []).append(int(events.offsets[at]))
    return found


def _offsets_of(events: Events, labelled: Collection[int | Moment]) -> tuple[NDArray[np.int64], int]:
    """The offsets of what is labelled, and how many labels name nothing that is there."""
    by_offset = {one for one in labelled if isinstance(one, int)}
    by_moment = [one for one in labelled if isinstance(one, Moment)]
    found = offsets_at(events, by_moment)
    there = by_offset & set(events.offsets.tolist()) if by_offset else set()
    offsets = there.union(*found.values())
    return np.array(sorted(offsets), np.int64), len(by_offset) - len(there) + len(by_moment) - len(found)


def _operations(partition: Partition) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(m,) which event each operation on a record is of, late ones too, and (m,) its session."""
    at = np.flatnonzero((partition.walk.kind == STEP) | (partition.walk.kind == LATE))
    return partition.walk.record[at], partition.session[at]


def _sessions_with(partition: Partition, offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    steps = partition.walk.steps  # what came too late is no anomaly
    found = np.isin(partition.events.offsets[partition.walk.record[steps]], offsets)
    return np.unique(partition.session[steps[found]])


def _of_sessions(partition: Partition, bad: NDArray[np.int32], parts: Parts) -> NDArray[np.bool_]:
    """(n,) which of the events that arrived belong to these sessions."""
    arrived, events = partition.arrived, partition.events
    record, session = _operations(partition)
    chosen = np.zeros(len(arrived), np.bool_)
    if parts.windows is None:
        mine = record[np.isin(session, bad)]
        wanted = set(zip(events.session[mine].tolist(), events.offsets[mine].tolist(), strict=True))
        found = zip(arrived.session.tolist(), arrived.offsets.tolist(), strict=True)
        chosen[:] = [one in wanted for one in found]
        return chosen
    for number in bad.tolist():  # a window's time is its last moment
        mine = record[session == number]
        first_ms, last_ms = events.time_ms[mine].min() + 1 - parts.windows.size_ms, events.time_ms[mine].max()
        in_time = (arrived.time_ms >= first_ms) & (arrived.time_ms <= last_ms)
        chosen |= in_time & (arrived.session == events.session[mine[0]])
    return chosen
