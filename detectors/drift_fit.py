"""What a training leaves for telling drift: how inputs and p-values were distributed, interval by interval."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.drift_watch import UsualDrift
from detectors.held_back import HeldBack
from detectors.score_watch import groups_of_numbers
from detectors.segments import BySegment, segment_p_values
from detectors.teaching import Taught
from features.events import Events


def as_arrived(taught: Taught) -> list[tuple[Events, NDArray[np.int32], NDArray[np.bool_]]]:
    """Of each partition its events in the order of arrival, in which workers count; their ids; which taught nothing."""
    found = []
    for p in taught.history.partitions:
        # Events that were put in order are found by their offsets.
        taught_by = np.isin(p.arrived.offsets, p.events.offsets[p.records(taught.split.learn)])
        found.append((p.arrived, taught.parts.encoder.ids(p.arrived.tokens, len(p.arrived)), ~taught_by))
    return found


def usual_drift(taught: Taught, held_back: HeldBack, records: Calibration, segments: BySegment) -> dict[str, bytes]:
    """The file that says it; none where the stream is not watched.

    p-values are those of the scores that calibrate, by that very calibration: what remains is how they vary from hour
    to hour. A record's time is taken to be that of its session's first event.
    """
    watch = taught.parts.drift
    if watch is None:
        return {}
    time_ms = taught.history.first_ms[held_back.of_record]
    order = np.argsort(time_ms, kind="stable")
    p_values = segment_p_values(held_back.records, held_back.record_segments.tolist(), records, segments)[order]
    scores = watch.scores.learn(
        [p_values], [time_ms[order]], [groups_of_numbers(held_back.of_record[order])], watch.inputs.after_ms
    )
    usual = UsualDrift(watch.inputs.learn(as_arrived(taught)), scores)
    return {"drift.json": json.dumps(usual.to_json()).encode()}
