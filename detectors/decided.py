"""How many decisions a partition has taken: times the promise, so many false alarms were due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detectors.process import Verdicts
from detectors.rows import MOST_SEGMENTS, OTHER_SEGMENTS, Decided


@dataclass(frozen=True)
class Numbers:
    """Of a slice's anomalies, the how many-th decision of its kind and segment each is: by record, by session end.

    `since_ms` is the event time from which they are counted.
    """

    since_ms: int = 0
    records: dict[int, int] = field(default_factory=dict)
    sessions: dict[int, int] = field(default_factory=dict)


def count_decisions(decided: Decided, verdicts: Verdicts) -> tuple[Decided, Numbers]:
    """Count a slice's decisions that could have been anomalies: those with a p-value, of records that are not late.

    Records and sessions are counted apart, each in their own order: when a session's end is looked at depends on how
    the stream was cut, what it is counted among does not.
    """
    events, ends = verdicts.events, verdicts.ends
    counts = ~verdicts.late & ~np.isnan(verdicts.p_value)
    # A session's first record has come before its end, so whether its segment is counted apart is known by then.
    known = dict.fromkeys(decided.records) | dict.fromkeys(name or "" for name in events.segments or ())
    apart = {"", *list(known)[:MOST_SEGMENTS]}
    records, of_records = _count(decided.records, events.segments, counts, verdicts.anomaly, apart)
    sessions, of_sessions = _count(decided.sessions, ends.segment, ~np.isnan(ends.p_value), ends.anomaly, apart)
    since_ms = decided.since_ms
    if since_ms is None and counts.any():
        since_ms = int(events.time_ms[np.argmax(counts)])
    return Decided(since_ms, records, sessions), Numbers(since_ms or 0, of_records, of_sessions)


def _count(
    before: Mapping[str, int], segments: Sequence[str | None] | None, counts: NDArray[np.bool_],
    anomaly: NDArray[np.bool_], apart: set[str],
) -> tuple[dict[str, int], dict[int, int]]:  # fmt: skip
    """Counts by segment, those of `apart` each and the others together, and those at the anomalies."""
    after = dict(before)
    if segments is None:  # most streams have none
        numbers = after.get("", 0) + np.cumsum(counts)
        if counts.any():
            after[""] = int(numbers[-1])
        return after, {i: int(numbers[i]) for i in np.flatnonzero(anomaly).tolist()}
    found: dict[int, int] = {}
    for i, (name, counted) in enumerate(zip(segments, counts.tolist(), strict=True)):
        segment = (name or "") if (name or "") in apart else OTHER_SEGMENTS
        after[segment] = after.get(segment, 0) + counted
        if anomaly[i]:
            found[i] = after[segment]
    return after, found
