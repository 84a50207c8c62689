"""Segments: values of a field, such as a service, of which those with enough data have calibrations of their own.

A record's segment is what its field holds, a session's that of its first event. What is usual in one service may be
strange in another: with one calibration for all, the loudest has all the alarms and the quietest none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from features.sessions import LATE, STEP, Walk
from features.tokens import stable_hash

NO_SEGMENT = b""  # in a session's row
# A segment has a calibration of its own where that vouches for the promise, and with so many scores at least.
LEAST_SCORES = 500
BySegment = Mapping[int, Calibration]  # by the stable hash of the segment's name
_PREFIX = "segment"


def calibrate_segments(
    scores: NDArray[np.float32], segments: Sequence[str | None], rate: float
) -> dict[int, Calibration]:
    """Calibrations of those segments that have enough of n held-back scores, given in the order they happened."""
    named = {segment: at for segment, at in places_of(segments).items() if segment is not None}
    learned = {
        stable_hash(segment): Calibration.learn(scores[at])
        for segment, at in sorted(named.items()) if len(at) >= LEAST_SCORES
    }  # fmt: skip
    return {name: own for name, own in learned.items() if own.supports(rate)}


def places_of(segments: Sequence[str | None]) -> dict[str | None, list[int]]:
    """Where each segment stands, in order."""
    places: dict[str | None, list[int]] = {}
    for i, segment in enumerate(segments):
        places.setdefault(segment, []).append(i)
    return places


def segment_p_values(
    scores: NDArray[np.float32], segments: Sequence[str | None] | None, stream: Calibration, own: BySegment
) -> NDArray[np.float64]:
    """(n,) p-values of (n,) scores, each by its segment's calibration where that has one, else by the stream's."""
    p_values = stream.p_values(scores)
    if segments is None or not own:
        return p_values
    calibrations = {name: own.get(stable_hash(name)) for name in set(segments) if name is not None}
    places: dict[str, list[int]] = {name: [] for name, calibration in calibrations.items() if calibration is not None}
    for i, segment in enumerate(segments):
        if segment in places:
            places[segment].append(i)
    for name, at in places.items():
        p_values[at] = own[stable_hash(name)].p_values(scores[at])
    return p_values


def follow_segments(
    walk: Walk, segments: Sequence[str | None] | None, before: NDArray[Any]
) -> tuple[list[str | None], NDArray[Any]]:
    """What segment each session has that ends, in the order of `walk.of_ends`, and (S,) what each row has afterwards.

    `before` (S,) holds UTF-8 texts, `NO_SEGMENT` for none, and is left untouched. An event without one gives none.
    """
    if segments is None:
        return [None] * len(walk.of_ends), before
    after, ended = before.copy(), {}
    is_step = walk.kind == STEP
    opens = np.zeros(len(walk.kind), np.bool_)
    opens[is_step] = walk.first[walk.record[is_step]]
    for operation in np.flatnonzero(opens | (~is_step & (walk.kind != LATE))).tolist():
        row = walk.row[operation]
        if opens[operation]:
            after[row] = (segments[walk.record[operation]] or "").encode()
        else:
            ended[operation] = after[row].decode() or None
            after[row] = NO_SEGMENT
    return [ended[operation] for operation in walk.of_ends.tolist()], after


def segment_arrays(records: BySegment, sessions: BySegment) -> dict[str, NDArray[Any]]:
    """Arrays to save: no names, for these may be nobody's business."""
    arrays: dict[str, NDArray[Any]] = {}
    for what, own in (("records", records), ("sessions", sessions)):
        for name, calibration in own.items():
            arrays |= calibration.to_arrays(f"{_PREFIX}.{name:016x}.{what}")
    return arrays


def segments_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[int, Calibration], dict[int, Calibration]]:
    """What `segment_arrays` gave; none from what was saved before there were any."""
    found: dict[str, dict[int, Calibration]] = {"records": {}, "sessions": {}}
    for name, what in _saved(arrays):
        found[what][int(name, 16)] = Calibration.from_arrays(arrays, f"{_PREFIX}.{name}.{what}")
    return found["records"], found["sessions"]


def _saved(arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str]]:
    for key in sorted(arrays):
        prefix, *rest = key.split(".")
        if prefix == _PREFIX and rest[-1] == "count":
            yield rest[0], rest[1]
